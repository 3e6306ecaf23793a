"""The workers of a run: processes that srun or torchrun started, one per GPU. Each holds a part of the index."""

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from teacherlm.core.errors import UserError
from teacherlm.core.lock import one_writer
from teacherlm.runtime import processes, rendezvous
from teacherlm.runtime.gpu import own_gpu
from teacherlm.runtime.processes import gather as gather
from teacherlm.runtime.processes import is_first as is_first
from teacherlm.runtime.processes import rank as rank
from teacherlm.runtime.processes import say as say
from teacherlm.runtime.processes import size as size

TIMEOUT = timedelta(hours=12)
"""How long a worker waits for the others, which may embed passages or read questions for hours."""


def join_workers(main_port: int) -> torch.device:
    """Meet the other workers, if there are any, and return the device of this worker.

    The environment variables of torchrun (RANK, WORLD_SIZE, MASTER_ADDR) are used. Under srun they are set from Slurm's
    variables.

    Args:
        main_port: the port of the first worker under Slurm; -1 means MASTER_PORT, or a port derived from the job step.

    Raises:
        UserError: the environment is incomplete, or the workers do not meet.
    """
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if "WORLD_SIZE" not in os.environ and "SLURM_PROCID" in os.environ and tasks > 1:
        environment_of_slurm(tasks, main_port)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", own_gpu()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if world > 1:
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(
                f"WORLD_SIZE is set but {', '.join(missing)} is not; start the workers with srun or torchrun"
            )
        rendezvous.stay_on_this_machine()
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the {world} workers did not meet at {os.environ['MASTER_ADDR']}: {error}") from error
    return device


def environment_of_slurm(tasks: int, main_port: int) -> None:
    listed = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    hosts = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    os.environ |= {
        "WORLD_SIZE": str(tasks),
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": hosts[0] if len(hosts) > 1 else rendezvous.LOOPBACK,
        "MASTER_PORT": str(main_port) if main_port > 0 else os.environ.get("MASTER_PORT") or str(port_of_step()),
    }


def port_of_step() -> int:
    """A port that all workers of a Slurm job step compute without communication. Other steps rarely get the same port.

    It depends, among others, on the random port on which srun itself listens.
    """
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_LAUNCHER_PORT", "SLURM_SRUN_COMM_PORT")
    step = " ".join(os.environ.get(name, "") for name in names)
    return 20_000 + int.from_bytes(hashlib.sha256(step.encode()).digest()[:4], "big") % 40_000


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def rows_of(count: int) -> tuple[int, int]:
    """The rows (start, end) of `count` that belong to this worker. The workers' parts cover all rows in order."""
    return count * rank() // size(), count * (rank() + 1) // size()


def from_first(work: Callable[[], Any]) -> Any:
    """Let the first worker do some work, and return its result, a JSON value, in all workers.

    Raises:
        UserError: the work failed. Only the first worker raises and reports it; the others exit with the same status.
    """
    try:
        return processes.from_first(work)
    except UserError as error:
        raise error if is_first() else SystemExit(2) from error


def bytes_from_first(data: bytes) -> bytes:
    """Return the first worker's bytes in all workers."""
    return rendezvous.broadcast_bytes(data) if dist.is_initialized() else data


@contextlib.contextmanager
def only_writer(*outputs: Path) -> Iterator[None]:
    """Within the block, no other run writes these outputs, because the first worker holds their locks."""
    with contextlib.ExitStack() as stack:
        from_first(lambda: stack.enter_context(one_writer(*outputs)))  # the result must be a JSON value: None
        yield


def each(work: Callable[[], Any]) -> Any:
    """Let every worker do a part of the work, and return this worker's result. A part must not wait for another part.

    Raises:
        UserError: a worker failed. The first worker raises the error of the first worker that failed; the others exit
            with the same status. So no worker waits for one that has ended.
    """
    result = mistake = None
    try:
        result = work()
    except UserError as error:
        mistake = str(error)
    mistakes = [found for found in gather(mistake) if found is not None]
    if mistakes:
        raise UserError(mistakes[0]) if is_first() else SystemExit(2)
    return result


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The rows of all workers, concatenated on the CPU, and the number of rows of each worker.

    Args:
        rows: this worker's rows (n, ...); n may differ between workers.
    """
    rows = rows.cpu()
    if not dist.is_initialized():
        return rows, [len(rows)]
    counts = gather(len(rows))
    padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype)
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[:count] for part, count in zip(gathered, counts)]), counts
