"""The flags of a program, and their mistakes in one line."""

import argparse
import math
import operator
from typing import NoReturn

from teacherlm.core.errors import UserError

LIST_MISSING = "print the numbers of what is not done (shards, models; otherwise 0), and do nothing"
"""Help of a flag that every stage has, for the chain to know what to submit."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake in the flags is a UserError: one line, without the usage of thirty flags."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def require_number(
    name: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a flag's number that is not finite or out of its range; None, a flag that was not given, is accepted.

    Raises:
        UserError: it names the flag, the range and the number.
    """
    if value is None:
        return
    if not math.isfinite(value):
        raise UserError(f"--{name}: a finite number was expected, found {value}")
    for bound, holds, words in (
        (least, operator.ge, "at least"),
        (above, operator.gt, "more than"),
        (most, operator.le, "at most"),
        (below, operator.lt, "less than"),
    ):
        if bound is not None and not holds(value, bound):
            raise UserError(f"--{name}: {words} {bound} was expected, found {value}")


def share_of(text: str) -> tuple[int, int]:
    """(I, N) of `--shard I/N`: the share numbered I of N, 0 the first."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard: I/N with 0 <= I < N was expected, found {text!r}")
    return int(index), int(count)
