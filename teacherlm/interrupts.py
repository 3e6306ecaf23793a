"""SIGUSR1 and SIGTERM ask a stage to stop where it can go on later, so that its job can be requeued."""

import signal
from typing import Any

REQUEUE = 75
"""Exit code of a stage that was interrupted and can go on: EX_TEMPFAIL of sysexits.h. The job script requeues on it."""


class Stop:
    """Whether one of the signals came. Made in the main thread; from then on they do not end the process."""

    def __init__(self) -> None:
        self.asked = False
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGUSR1, signal.SIGTERM)}

    def ask(self, *_: Any) -> None:
        self.asked = True

    def restore(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
