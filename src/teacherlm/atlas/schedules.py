"""How learning rates go, and when the index is made anew; as in the reference."""

import math
from collections.abc import Callable

from teacherlm.core.errors import UserError

SCHEDULERS = ("linear", "cosine", "fixed")
RATIO = 0.1
"""Of the learning rate: where `linear` begins, and where both come down to or begin their way to zero."""
END = 2**32


def learning_rate(scheduler: str, warmup: int, total: int) -> Callable[[int], float]:
    """The share of the learning rate at a step.

    linear: from 0.1 up to 1 in `warmup` steps, then down by 0.9 until `total`. cosine: from 0 up, then a quarter of a
    cosine down to 0.1. fixed: from 0 up, then 1.
    """

    def share(step: int) -> float:
        if step < warmup:
            rising = step / warmup
            return rising * (1 - RATIO) + RATIO if scheduler == "linear" else rising
        if scheduler == "fixed":
            return 1.0
        done = (step - warmup) / max(1, total - warmup)
        if scheduler == "linear":
            return max(0.0, 1 - (1 - RATIO) * done)
        return RATIO + (1 - RATIO) * math.cos(0.5 * math.pi * done)

    return share


class IndexRefresh:
    """When the passages are embedded anew.

    Args:
        schedule: -1 (never), a number of steps, or `0-100:10,100-1000000:500`: every 10 steps until step 100, then
            every 500, counted from the beginning of each interval.
        freeze_retriever_steps: until then the retriever does not change.
        trains_passages: whether the passage encoder learns at all; query-side training leaves it as it is.

    Raises:
        UserError: the schedule is malformed.
    """

    def __init__(self, schedule: str, freeze_retriever_steps: int, trains_passages: bool):
        self.intervals = parse_schedule(schedule)
        self.freeze_retriever_steps = freeze_retriever_steps
        self.trains_passages = trains_passages

    def is_due(self, step: int) -> bool:
        """Whether the index is to be made anew after `step` steps; never at step 0, where it is new."""
        if step == 0 or not self.trains_passages or step < self.freeze_retriever_steps:
            return False
        return any(start <= step < end and (step - start) % every == 0 for start, end, every in self.intervals)


def parse_schedule(text: str) -> list[tuple[int, int, int]]:
    """(first step, end, every so many) of each interval."""
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
                f"--refresh_index {text}: -1, a number, or FIRST-END:EVERY with commas was expected, found {piece!r}"
            )
        intervals.append((int(start), int(end), int(every)))
    return intervals
