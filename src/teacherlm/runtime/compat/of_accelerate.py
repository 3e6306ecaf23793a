"""What this project uses of accelerate without a public interface for it."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

GLOO = ("gloo", DistributedType.MULTI_CPU)


def finds_gloo() -> bool:
    """Whether accelerate finds a backend for several processes that DeepSpeed lets work together on CPUs.

    Up to 1.15 at least it does not: it chooses gloo only where it is told that it is on a CPU (`cpu=True`), and then it
    leaves DeepSpeed out.
    """
    return PartialState._prepare_backend(None, cpu=False, sagemaker_dp=False, backend=None) == GLOO


@contextlib.contextmanager
def gloo_for_deepspeed() -> Iterator[None]:
    """Let accelerate's first state, which is made in the block, join DeepSpeed's processes on CPUs over gloo.

    Nothing is changed with a GPU, in a single process, or where accelerate finds gloo by itself.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if torch.cuda.is_available() or not several or finds_gloo():
        yield
        return
    own = PartialState._prepare_backend

    def prepare_backend(*_: Any, **__: Any) -> tuple[str, DistributedType]:
        return GLOO

    PartialState._prepare_backend = prepare_backend
    try:
        yield
    finally:
        PartialState._prepare_backend = own
