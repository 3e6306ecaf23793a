"""Pickles in a checkpoint: tensors and plain values are read from them, and nothing of them runs.

torch.load refuses code when it is told `weights_only=True`. DeepSpeed tells it the opposite, as its states hold a few
objects of its own; these are allowed by name here, and torch is told to refuse whatever else there is.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from teacherlm.core.errors import UserError, disk_error, reason
from teacherlm.runtime.compat.of_transformers import numpy_allowed

FORCE, FORBID = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""torch's variables: whatever a caller says, `weights_only` is true, or false."""


@contextlib.contextmanager
def without_code(allowed: Sequence[type] = ()) -> Iterator[None]:
    """While the block runs, whoever calls torch.load gets tensors, plain values, numpy's arrays and `allowed`, or an
    error.

    Args:
        allowed: more classes that may be in a pickle.
    """
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORBID)}
    os.environ[FORCE] = "1"
    try:
        with numpy_allowed(), torch.serialization.safe_globals(list(allowed)):
            yield
    finally:
        del os.environ[FORCE]
        os.environ |= {name: value for name, value in before.items() if value is not None}


def require_plain(file: Path) -> None:
    """Refuse a file of torch.save that asks for code, by the names in its pickle; no tensor is read.

    It is called within `without_code`, which is what keeps code from running: this is for a message at the beginning.

    Raises:
        UserError: it names the file and what it asks for.
    """
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception as error:  # whatever torch's readers raise
        raise UserError(
            f"{file}: refused or damaged ({reason(error)}); only tensors and plain values are read from a checkpoint; "
            "remove this checkpoint, and training goes on from the one before"
        ) from error
    if unsafe:
        raise UserError(
            f"{file}: refused, its pickle asks for {', '.join(sorted(unsafe))}, which could run code; remove this "
            "checkpoint, and training goes on from the one before"
        )


def load_plain(file: Path, allowed: Sequence[type] = (), mapped: bool = False) -> Any:
    """What `torch.save` wrote: tensors and plain values, on the CPU, and objects of the allowed classes.

    Args:
        mapped: whether its tensors are memory-mapped, where the file's format allows that.

    Raises:
        UserError: its pickle asks for anything else, which could run code, or it is damaged.
    """
    try:
        is_zip = zipfile.is_zipfile(file)
        unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) if is_zip else set()
        unsafe -= {f"{kind.__module__}.{kind.__qualname__}" for kind in allowed}
        if unsafe:
            raise UserError(f"{file}: refused, its pickle asks for {', '.join(sorted(unsafe))}, which could run code")
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and is_zip)
    except UserError:
        raise
    except Exception as error:  # whatever torch's readers raise
        raise disk_error(error) or UserError(
            f"{file}: refused or damaged ({reason(error)}); only tensors and plain values are read"
        ) from error
