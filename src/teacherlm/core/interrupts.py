"""SIGUSR1 and SIGTERM ask a stage to stop where it can go on later, so that its job can be requeued."""

import os
import signal
from typing import Any

REQUEUE = 75
"""Exit code of a stage that was interrupted and can go on: EX_TEMPFAIL of sysexits.h. The job script requeues on it."""


class Stop:
    """Whether one of the signals came. Made in the main thread; from then on they do not end the process.

    Its forked children they do end: a library's pool ends its processes with SIGTERM and waits until they have gone.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before = {number: signal.signal(number, self.ask) for number in SIGNALS}
        active.append(self)

    def ask(self, *_: Any) -> None:
        self.asked = True

    def restore(self) -> None:
        """Give the signals back to who had them."""
        if self in active:
            active.remove(self)
        for number, handler in self.before.items():
            signal.signal(number, handler)


SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
active: list[Stop] = []


def is_asked() -> bool:
    """Whether one of the signals has asked this process to stop; for code that waits for something."""
    return any(stop.asked for stop in active)


def hold_back() -> None:
    """While a process forks: a signal that comes before the child has handlers of its own must wait for them."""
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
