"""The workers of a run: processes that srun or torchrun started, one a GPU; each holds its share of the index."""

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
"""How long a worker waits for the others: they embed passages or read questions, each for itself, for hours."""


def join_workers(main_port: int) -> torch.device:
    """Meet the other workers, if there are any, and say which device this one computes on.

    The environment of torchrun (RANK, WORLD_SIZE, MASTER_ADDR) is taken as it is; under srun it is made from Slurm's.

    Args:
        main_port: of the first worker's machine, for Slurm; -1: MASTER_PORT, or one that is made from the job's step.

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
            raise UserError(f"WORLD_SIZE is set but {', '.join(missing)} is not; start with srun or torchrun")
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
    """A port that all workers of a job's step come to without asking one another, and other steps hardly ever.

    The port at which srun itself listens, a random one, is among what it depends on.
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


def share_of(count: int) -> tuple[int, int]:
    """The rows (start, end) of `count` that are this worker's: all shares together are all rows, in order."""
    return count * rank() // size(), count * (rank() + 1) // size()


def from_first(work: Callable[[], Any]) -> Any:
    """Let the first worker do something, and give all of them its result, a JSON value.

    Raises:
        UserError: in the first, which says it; the others end with the same status.
    """
    try:
        return processes.from_first(work)
    except UserError as error:
        raise error if is_first() else SystemExit(2) from error


def bytes_from_first(data: bytes) -> bytes:
    """The bytes that the first worker gives, in all workers."""
    return rendezvous.broadcast_bytes(data) if dist.is_initialized() else data


@contextlib.contextmanager
def only_writer(*outputs: Path) -> Iterator[None]:
    """While the block runs, no other run writes these outputs: the first worker holds their locks, for all workers."""
    with contextlib.ExitStack() as stack:
        from_first(lambda: stack.enter_context(one_writer(*outputs)))  # it returns None
        yield


def each(work: Callable[[], Any]) -> Any:
    """Let every worker do its part, which must not wait for another's; what this one's gives.

    Raises:
        UserError: of the first worker that has one, in the first worker, which says it; the others end with the same
            status. So no worker waits for one that has ended.
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
    """The rows of all workers, one after the other, on the CPU, and how many are whose.

    Args:
        rows: (n, ...), n may differ from worker to worker.
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
