"""SIGUSR1 and SIGTERM make a stage stop at a point from which it can resume, so that its job can be requeued."""

import os
import signal
from typing import Any

REQUEUE = 75
"""Exit code of a stage that was interrupted and can resume: EX_TEMPFAIL of sysexits.h. The job script then requeues."""


class Stop:
    """Whether one of the signals arrived. It is made in the main thread; from then on they do not end the process.

    They still end forked children: a library's pool ends its processes with SIGTERM and waits for them.
    """

    def __init__(self) -> None:
        self.requested = False
        self.before = {number: signal.signal(number, self.request) for number in SIGNALS}
        active.append(self)

    def request(self, *_: Any) -> None:
        self.requested = True

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        if self in active:
            active.remove(self)
        for number, handler in self.before.items():
            signal.signal(number, handler)


SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
active: list[Stop] = []


def is_asked() -> bool:
    """Whether one of the signals arrived. Code that waits for something calls this."""
    return any(stop.requested for stop in active)


def hold_back() -> None:
    """Block the signals during a fork: one that arrives early must wait until the child has its handlers."""
    if active:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def let_through() -> None:
    if active:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def end_at_signals() -> None:
    if active:
        active.clear()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


os.register_at_fork(before=hold_back, after_in_parent=let_through, after_in_child=end_at_signals)
