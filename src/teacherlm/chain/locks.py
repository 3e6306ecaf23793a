"""What keeps two runs from the same work: a file of a run's folder that is locked while a task is done.

The lock is of the kind that a process hands on to those that it starts: a stage keeps it to its end, however the chain
that has started it ends.
"""

import fcntl
import os
from pathlib import Path

from teacherlm.chain.graph import Graph, Stage
from teacherlm.chain.settings import plain
from teacherlm.core.errors import UserError


def lock_task(graph: Graph, stage: Stage, task: int) -> int:
    """Wait until nobody else is at the work of a task; returns the descriptor that holds its lock.

    Raises:
        UserError: the lock's file cannot be written.
    """
    graph.folder.locks.mkdir(parents=True, exist_ok=True)
    number = open_lock(graph.folder.locks / stage.lock(task))
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{stage.name}: waiting for another run that is at the same work", flush=True)
        fcntl.flock(number, fcntl.LOCK_EX)
    return number


def open_lock(file: Path) -> int:
    """A descriptor of a lock's file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError:
        message = f"{file}: cannot be written; is the disk full, or is the file another user's?"
        raise UserError(plain(message)) from None
