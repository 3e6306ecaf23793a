"""The memory of a process: kept for what follows on a CPU, and found out when there is none."""

import ctypes
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Numbers of mallopt's parameters (glibc's malloc.h)."""


def keep_freed_memory() -> None:
    """Let large tensors be made from memory that earlier ones freed, instead of pages new from the system.

    glibc gives blocks of 32 MiB and more, and its free upper end, back to the system, and the next tensor's pages are
    mapped and cleared again one by one: a fourth of a training step in bfloat16 (docs/measurements/finetune.md).
    Nothing happens where the C library is another, or when the user has set MALLOC_ variables.

    Batches of ever other sizes leave ever other gaps, so what is kept grows: `give_back_freed_memory` now and then.
    """
    if (libc := glibc()) is not None:
        libc.mallopt(TRIM_THRESHOLD, -1)
        libc.mallopt(TOP_PAD, 64 * 2**20)
        libc.mallopt(MMAP_MAX, 0)


def give_back_freed_memory() -> None:
    """Return all pages that no tensor is in to the system; the next step maps those that it needs anew."""
    if (libc := glibc()) is not None:
        libc.malloc_trim(0)


def glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc and the user has not set its MALLOC_ variables."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return None
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
    except OSError:
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU, or on a CPU the machine, has no memory left."""
    import torch

    known = torch.cuda.OutOfMemoryError | MemoryError
    return isinstance(error, known) or "can't allocate memory" in str(error)
