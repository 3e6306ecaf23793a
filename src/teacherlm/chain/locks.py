"""Locks that keep two runs from doing the same work: a file in the run's folder is locked while a task is done.

A process passes this kind of lock (flock) to the processes that it starts. A stage therefore keeps the lock until it
ends, even if the chain that started it ends earlier.
"""

import fcntl
import os
from pathlib import Path

from teacherlm.chain.graph import Graph, Stage
from teacherlm.chain.settings import plain
from teacherlm.core.errors import UserError


def lock_task(graph: Graph, stage: Stage, index: int) -> int:
    """Wait until no other process is doing a task; return the descriptor that holds the task's lock.

    Raises:
        UserError: the lock's file cannot be written.
    """
    file = graph.folder.lock(stage.lock(index))
    file.parent.mkdir(parents=True, exist_ok=True)
    number = open_lock(file)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{stage.name}: waiting for another run that is doing the same work", flush=True)
        fcntl.flock(number, fcntl.LOCK_EX)
    return number


def open_lock(file: Path) -> int:
    """A descriptor of a lock's file.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    except OSError:
        message = f"{file}: cannot be written; is the disk full, or does the file belong to another user?"
        raise UserError(plain(message)) from None
