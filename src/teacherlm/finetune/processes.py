"""The processes of one training. finetune.sh or a launcher describes them in environment variables.

A StageRun takes this module as its argument `processes` (core/stage_run.py).
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from teacherlm.core.errors import UserError
from teacherlm.core.lock import OutputLock
from teacherlm.runtime.gpu import own_gpu
from teacherlm.runtime.launcher import meeting_port
from teacherlm.runtime.memory import keep_freed_memory
from teacherlm.runtime.processes import from_first as from_first
from teacherlm.runtime.processes import is_first as is_first
from teacherlm.runtime.processes import say as say
from teacherlm.runtime.processes import size
from teacherlm.runtime.rendezvous import LOOPBACK, stay_on_this_machine

FIRST_SAYS_IT = 20
"""The other ranks wait this many seconds before they report an error, so that rank 0 reports a shared error once; when
rank 0 ends, the others are terminated. An error in another rank only (its node lacks a folder) is reported late."""
TURN_SECONDS = 1
"""Seconds between two attempts of several processes to take the lock of their output."""


def join_processes() -> None:
    """Prepare this process to meet the other processes that a launcher started.

    Raises:
        UserError: the launcher's variables are incomplete, or the port is taken.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed warns that it found no accelerator
        keep_freed_memory()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(f"WORLD_SIZE is set but {', '.join(missing)} is not; start the processes with finetune.sh")
    if torch.cuda.is_available():
        own_gpu()  # accelerate would take a GPU that another process has
    stay_on_this_machine()


def meet_alone() -> None:
    """Set the variables of a launcher for a single process: DeepSpeed needs them even then."""
    alone = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": LOOPBACK}
    if "MASTER_PORT" not in os.environ:
        alone["MASTER_PORT"] = meeting_port(LOOPBACK)
    for name, value in alone.items():
        os.environ.setdefault(name, value)
    stay_on_this_machine()


def meet(training: Any) -> None:
    """Let the processes meet. TrainingArguments do this when `world_size` is read."""
    if training.world_size != size():
        raise RuntimeError(f"{training.world_size} processes were to meet, and {size()} did")


@contextmanager
def said_once() -> Iterator[None]:
    """Let rank 0 report a UserError that all ranks raise."""
    try:
        yield
    except UserError:
        if not is_first():
            time.sleep(FIRST_SAYS_IT)
        raise


def take_turn(lock: OutputLock) -> None:
    """Let rank 0 take the lock of the output. All ranks wait together while another run holds it.

    Rank 0 tries repeatedly, because a single broadcast that waits for hours would run into its timeout.
    """
    if size() == 1:
        lock.acquire()
        return
    waited = False
    while not from_first(lambda: lock.acquire(wait=False)):
        if not waited and is_first():
            print(f"waiting for {lock.output}, {lock.holder()}", flush=True)
        waited = True
        time.sleep(TURN_SECONDS)


@contextmanager
def only_writer(*outputs: Path) -> Iterator[None]:
    """Hold the locks of these outputs during the block, in rank 0."""
    with ExitStack() as taken:
        with said_once():
            for lock in map(OutputLock, sorted(outputs)):
                take_turn(lock)
                taken.callback(lock.release)
        yield


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error means that another process of the training has ended."""
    return any(text in str(error) for text in ("Connection closed by peer", "Connection reset by peer"))
