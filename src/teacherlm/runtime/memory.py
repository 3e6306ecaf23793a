"""The memory of a process: reusing freed memory on a CPU, and recognizing errors for lack of memory."""

import ctypes
import os

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Parameter numbers of mallopt (glibc's malloc.h)."""
NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cuda failure 'out of memory'",
)
"""Texts of errors that mean a lack of memory and are not torch.OutOfMemoryError: from torch on a CPU, from CUDA outside
torch's allocator (pinned memory), from cuBLAS, and from NCCL."""


def keep_freed_memory() -> None:
    """Let large tensors reuse the memory of earlier tensors, instead of new pages from the system.

    By default glibc returns freed blocks of 32 MiB and more, and the free end of its heap, to the system. The system
    then maps and clears the pages of the next tensor one by one, which takes a fourth of a training step in bfloat16
    (docs/measurements/finetune.md). This function does nothing if the C library is not glibc, or if the user has set
    MALLOC_ variables.

    Varying batch sizes fragment the heap, so memory grows. Call `give_back_freed_memory` from time to time.
    """
    if (libc := glibc()) is not None:
        libc.mallopt(TRIM_THRESHOLD, -1)
        libc.mallopt(TOP_PAD, 64 * 2**20)
        libc.mallopt(MMAP_MAX, 0)


def give_back_freed_memory() -> None:
    """Return all unused pages to the system. The next step maps the pages that it needs again."""
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
    """Whether an error means that the GPU or the machine has no memory left."""
    import torch

    known = torch.cuda.OutOfMemoryError | MemoryError
    return isinstance(error, known) or any(text in str(error) for text in NO_MEMORY)
