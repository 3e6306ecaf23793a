"""The processes of one run: this process's rank, work that rank 0 does for all, and printing by rank 0 only.

rendezvous.py lets the processes meet. What only one stage needs is in finetune/processes.py and atlas/workers.py.
"""

import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from teacherlm.core.errors import UserError, disk_error
from teacherlm.runtime import rendezvous


def size() -> int:
    """Number of processes that have met."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process. Before the processes meet, the launcher's variables tell it."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def is_first() -> bool:
    return rank() == 0


def say(text: str) -> None:
    """Print a line in rank 0 only."""
    if is_first():
        print(text, flush=True)


def from_first(work: Callable[[], Any]) -> Any:
    """Let rank 0 do some work on files, and return its result, a JSON value, in all ranks.

    Raises:
        UserError: the work failed with a UserError or an error of the disk; all ranks raise it.
    """
    if size() == 1:
        return work()
    result, mistake = rendezvous.broadcast(attempt(work) if is_first() else None)
    if mistake is not None:
        raise UserError(mistake)
    return result


def gather(value: Any) -> list[Any]:
    """The JSON values that all ranks pass, in the order of the ranks. Use it for small values."""
    return [value] if size() == 1 else rendezvous.gather(value)


def each(work: Callable[[], None]) -> None:
    """Let every rank do some work on files.

    Raises:
        UserError: the work failed in a rank with a UserError or an error of the disk; all ranks raise the first one.
    """
    mistakes = [mistake for mistake in gather(attempt(work)[1]) if mistake is not None]
    if mistakes:
        raise UserError(mistakes[0])


def attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """(the result of some work, None), or (None, the message of its error)."""
    try:
        return work(), None
    except (UserError, OSError) as error:
        mistake = error if isinstance(error, UserError) else disk_error(error)
        if mistake is None:
            raise
        return None, str(mistake)
