"""The private interfaces of accelerate that this project uses."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

GLOO = ("gloo", DistributedType.MULTI_CPU)


def finds_gloo() -> bool:
    """Whether accelerate by itself chooses gloo for several DeepSpeed processes on CPUs.

    Version 1.15 and earlier versions do not: they choose gloo only with `cpu=True`, and with `cpu=True` they do not use
    DeepSpeed.
    """
    return PartialState._prepare_backend(None, cpu=False, sagemaker_dp=False, backend=None) == GLOO


@contextlib.contextmanager
def gloo_for_deepspeed() -> Iterator[None]:
    """Within the block, let accelerate create its first state with gloo, so that DeepSpeed's CPU processes can meet.

    Nothing is changed if there is a GPU or only one process, or if accelerate chooses gloo by itself.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if torch.cuda.is_available() or not several or finds_gloo():
        yield
        return
    original = PartialState._prepare_backend

    def prepare_backend(*_: Any, **__: Any) -> tuple[str, DistributedType]:
        return GLOO

    PartialState._prepare_backend = prepare_backend
    try:
        yield
    finally:
        PartialState._prepare_backend = original
