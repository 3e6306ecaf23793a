"""The schedules of the learning rates and of index refreshes, as in the reference."""

import math
from collections.abc import Callable

from teacherlm.core.errors import UserError

SCHEDULERS = ("linear", "cosine", "fixed")
RATIO = 0.1
"""The fraction of the learning rate with which `linear` begins, and to which `linear` and `cosine` decrease."""
END = 2**32


def learning_rate(scheduler: str, warmup: int, total: int) -> Callable[[int], float]:
    """The function from a step to its fraction of the learning rate.

    linear: it rises from 0.1 to 1 in `warmup` steps, and falls to 0.1 at `total` and further to 0. cosine: it rises
    from 0 to 1, and falls to 0.1 along a quarter of a cosine. fixed: it rises from 0 to 1 and stays there.
    """

    def fraction(step: int) -> float:
        if step < warmup:
            rising = step / warmup
            return rising * (1 - RATIO) + RATIO if scheduler == "linear" else rising
        if scheduler == "fixed":
            return 1.0
        done = (step - warmup) / max(1, total - warmup)
        if scheduler == "linear":
            return max(0.0, 1 - (1 - RATIO) * done)
        return RATIO + (1 - RATIO) * math.cos(0.5 * math.pi * done)

    return fraction


class IndexRefresh:
    """When the passages are embedded again.

    Args:
        schedule: -1 (never), a number of steps, or intervals such as `0-100:10,100-1000000:500`: every 10 steps until
            step 100, then every 500 steps, counted from the beginning of each interval.
        freeze_retriever_steps: the step until which the retriever does not learn.
        trains_passages: whether the passage encoder learns; with query-side training it does not.

    Raises:
        UserError: the schedule is malformed.
    """

    def __init__(self, schedule: str, freeze_retriever_steps: int, trains_passages: bool):
        self.intervals = parse_schedule(schedule)
        self.freeze_retriever_steps = freeze_retriever_steps
        self.trains_passages = trains_passages

    def is_due(self, step: int) -> bool:
        """Whether the index has to be made again after `step` steps. At step 0 it is new."""
        if step == 0 or not self.trains_passages or step < self.freeze_retriever_steps:
            return False
        return any(start <= step < end and (step - start) % every == 0 for start, end, every in self.intervals)


def parse_schedule(text: str) -> list[tuple[int, int, int]]:
    """(first step, end, number of steps between refreshes) for each interval."""
    if text == "-1":
        return []
    if text.isdecimal() and int(text):
        return [(0, END, int(text))]
    intervals = []
    for piece in text.split(","):
        steps, _, every = piece.partition(":")
        start, _, end = steps.partition("-")
        if not (start.isdecimal() and end.isdecimal() and every.isdecimal() and int(start) < int(end) and int(every)):
            raise UserError(
                f"--refresh_index {text}: -1, a number, or FIRST-END:EVERY separated by commas was expected, found "
                f"{piece!r}"
            )
        intervals.append((int(start), int(end), int(every)))
    return intervals
