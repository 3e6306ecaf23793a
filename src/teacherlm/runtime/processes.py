"""The processes of one run, whoever started them: which one this is, what the first does for all, who prints.

How they meet is in rendezvous.py. What one stage needs beyond this is with the stage: finetune/processes.py, and
atlas/workers.py.
"""

import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from teacherlm.core.errors import UserError, disk_error
from teacherlm.runtime import rendezvous


def size() -> int:
    """The number of processes that have met."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, 0 the first; before they meet, as the launcher's variables say."""
    if dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def is_first() -> bool:
    return rank() == 0


def say(text: str) -> None:
    """Print in one of the processes."""
    if is_first():
        print(text, flush=True)


def from_first(work: Callable[[], Any]) -> Any:
    """Let the first process do some work on files, and give all of them its result, a JSON value.

    Raises:
        UserError: in all of them, where the work raises one.
    """
    if size() == 1:
        return work()
    result, mistake = rendezvous.broadcast(attempt(work) if is_first() else None)
    if mistake is not None:
        raise UserError(mistake)
    return result


def gather(value: Any) -> list[Any]:
    """What every process gives, a JSON value, in the order of the ranks; for small things."""
    return [value] if size() == 1 else rendezvous.gather(value)


def attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """What some work returns and None, or None and its mistake."""
    try:
        return work(), None
    except (UserError, OSError) as error:
        mistake = error if isinstance(error, UserError) else disk_error(error)
        if mistake is None:
            raise
        return None, str(mistake)
