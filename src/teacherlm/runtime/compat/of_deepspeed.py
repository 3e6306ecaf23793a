"""What this project uses of DeepSpeed (0.17 and later) without a public interface for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def state_classes() -> list[type]:
    """The classes that DeepSpeed's states consist of beside tensors and plain values.

    torch.load refuses them unless they are named; DeepSpeed itself reads its states without any such check.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def read_states_by(engine: Any, read: Callable[[Path], Any]) -> None:
    """Let an engine read its checkpoints with another function than torch.load.

    DeepSpeed's configuration can name a checkpoint engine, but only one that DeepSpeed brings along.
    """
    engine.checkpoint_engine.load = lambda path, map_location=None: read(Path(path))


def numbers_of(parameter: torch.Tensor) -> int:
    """How many numbers a parameter has in all processes; under ZeRO-3 its tensor is a part of them, or empty."""
    return getattr(parameter, "ds_numel", parameter.numel())
