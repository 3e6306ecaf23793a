"""The private interfaces of DeepSpeed (0.17 and later) that this project uses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def state_classes() -> list[type]:
    """The classes in DeepSpeed's saved states, apart from tensors and plain values.

    torch.load refuses these classes unless they are allowed by name. DeepSpeed itself reads its states without a check.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def read_states_by(engine: Any, read: Callable[[Path], Any]) -> None:
    """Let an engine read its checkpoints with the function `read` instead of torch.load.

    DeepSpeed's configuration can name a checkpoint engine, but only one of DeepSpeed's.
    """
    engine.checkpoint_engine.load = lambda path, map_location=None: read(Path(path))


def numbers_of(parameter: torch.Tensor) -> int:
    """Number of elements of a parameter over all processes. Under ZeRO-3 the local tensor is only a part, or empty."""
    return getattr(parameter, "ds_numel", parameter.numel())
