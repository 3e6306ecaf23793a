"""Read tensors and plain values from the pickles in a checkpoint without running code from them.

torch.load refuses code with `weights_only=True`. DeepSpeed passes `weights_only=False`, because its states hold a few
objects of DeepSpeed's classes. This module allows these classes by name and makes torch refuse everything else.
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
"""torch's environment variables that force `weights_only` to True or to False, whatever the caller passes."""


@contextlib.contextmanager
def without_code(allowed: Sequence[type] = ()) -> Iterator[None]:
    """Within the block, torch.load accepts only tensors, plain values, numpy arrays and the `allowed` classes.

    Args:
        allowed: additional classes that a pickle may contain.
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
    """Refuse a file of torch.save if the names in its pickle ask for code. No tensor is read.

    It is called within `without_code`, which prevents code from running. This function only gives an early message.

    Raises:
        UserError: the message names the file and what its pickle asks for.
    """
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception as error:  # torch's readers can raise anything
        raise UserError(
            f"{file}: refused or damaged ({reason(error)}); only tensors and plain values are read from a checkpoint; "
            "remove this checkpoint, and training resumes from the one before"
        ) from error
    if unsafe:
        raise UserError(
            f"{file}: refused, its pickle asks for {', '.join(sorted(unsafe))}, which could run code; remove this "
            "checkpoint, and training resumes from the one before"
        )


def load_plain(file: Path, allowed: Sequence[type] = (), mapped: bool = False) -> Any:
    """The contents of a file of `torch.save`: tensors on the CPU, plain values, and objects of the allowed classes.

    Args:
        mapped: whether tensors are memory-mapped if the file's format allows it.

    Raises:
        UserError: the pickle asks for anything else, which could run code, or the file is damaged.
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
    except Exception as error:  # torch's readers can raise anything
        raise disk_error(error) or UserError(
            f"{file}: refused or damaged ({reason(error)}); only tensors and plain values are read"
        ) from error
