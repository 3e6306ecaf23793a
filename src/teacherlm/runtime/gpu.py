"""The GPU of this process: which one it is, what it computes in, and what is free on it."""

import os

import torch

from teacherlm.core.errors import UserError


def own_gpu() -> int:
    """The number of this process's GPU among those that it sees: its LOCAL_RANK.

    srun can give each task one GPU of its own (--gpus-per-task): such a task sees one GPU, whatever its number.

    Raises:
        UserError: there are more processes than GPUs. NCCL refuses two processes on one GPU.
    """
    local, seen = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local < seen:
        return local
    if seen == 1 and os.environ.get("SLURM_LOCALID") == str(local):
        return 0
    raise UserError(f"process {local} of this machine has no GPU of its own; start at most {seen} here")


def computes_bfloat16() -> bool:
    """Whether the GPU has units for bfloat16 (since 2020, compute capability 8.0).

    torch says by default that older ones support it too, because it emulates it there, which takes longer than float32.
    """
    return torch.cuda.is_bf16_supported(including_emulation=False)


def free_memory(device: torch.device) -> int:
    """Bytes that new tensors can have on a GPU: those that the driver calls free, and those that torch keeps."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def device_of(chosen: str | None) -> str:
    """The device of --device: `cpu`, `cuda`, or `cuda:N` for the number of a GPU. Without a GPU it is the CPU.

    Raises:
        UserError: there is no such GPU.
    """
    if chosen is not None and chosen.isdecimal():
        if torch.cuda.is_available() and int(chosen) >= torch.cuda.device_count():
            raise UserError(f"--device {chosen}: the GPUs here are 0 to {torch.cuda.device_count() - 1}")
        chosen = f"cuda:{chosen}"
    if chosen is None or (chosen.startswith("cuda") and not torch.cuda.is_available()):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return chosen
