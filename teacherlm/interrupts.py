"""SIGUSR1 and SIGTERM ask a stage to stop where it can go on later, so that its job can be requeued."""

import os
import signal
from typing import Any

REQUEUE = 75
"""Exit code of a stage that was interrupted and can go on: EX_TEMPFAIL of sysexits.h. The job script requeues on it."""


class Stop:
    """Whether one of the signals came. Made in the main thread; from then on they do not end the process.

    Its children they do end: a library's pool of processes ends them with SIGTERM and waits until they have gone.
    """

    def __init__(self) -> None:
        self.asked = False
        self.process = os.getpid()
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGUSR1, signal.SIGTERM)}

    def ask(self, number: int, *_: Any) -> None:
        if os.getpid() != self.process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = True

    def restore(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
