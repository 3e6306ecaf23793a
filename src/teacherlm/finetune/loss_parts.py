"""Weights of the parts of a text in the loss: the question, the answer and the explanation.

With `--loss_weights answer:0.5,explanation:0.5` the loss of a step is 0.5 x the mean over the answers' tokens + 0.5 x
the mean over the explanations' tokens. So a long explanation does not drown the answer's one token (Distilling
step-by-step: Hsieh et al. 2023, arXiv 2305.02301, equation 3, where the two are separate samples).
"""

import re
from collections.abc import Mapping
from typing import Any

from teacherlm.catalog import text_parts
from teacherlm.catalog.text_parts import PARTS, QUESTION
from teacherlm.core.errors import UserError

Shares = tuple[float, ...]
"""The weight of each of PARTS in the loss."""


def parse_shares(text: str) -> Shares:
    """Parse --loss_weights: `answer:0.5,explanation:0.5`. Parts that are not named have no loss.

    Raises:
        UserError: the text has a different form.
    """
    found: dict[str, float] = {}
    for word in text.split(","):
        name, _, number = word.partition(":")
        if name not in PARTS or name in found or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", number):
            raise UserError(
                f"--loss_weights {text}: PART:WEIGHT,PART:WEIGHT was expected, with each of {', '.join(PARTS)} at most "
                "once, such as answer:0.5,explanation:0.5"
            )
        found[name] = float(number)
    if not any(found.values()):
        raise UserError(f"--loss_weights {text}: at least one weight above 0 was expected")
    return tuple(found.get(part, 0.0) for part in PARTS)


def known_spans(row: Mapping[str, Any], field: str, where: str) -> text_parts.Spans | None:
    """The parts of a field of a row; None if they are unknown.

    Args:
        where: what messages call the row.

    Raises:
        UserError: data_prepare.py did not write them.
    """
    try:
        spans = text_parts.read(dict(row), field)
        if spans is None:
            return None
        ends = [0, *(end for _, end in spans)]
        known = all(part in PARTS for part, _ in spans) and all(type(end) is int for end in ends)
        if known and ends == sorted(ends) and ends[-1] == len(row[field]):
            return spans
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise UserError(
        f"{where}: the field {text_parts.COLUMN!r} does not fit the field {field!r}; make the dataset again "
        "with data_prepare.py --post_process"
    )


def spans_in(row: Mapping[str, Any], field: str, where: str) -> text_parts.Spans:
    """The parts of a field of a row.

    Args:
        where: what messages call the row.

    Raises:
        UserError: they are unknown, or data_prepare.py did not write them.
    """
    spans = known_spans(row, field, where)
    if spans is None:
        raise UserError(
            f"{where}: what is question, answer and explanation in the field {field!r} is not known; "
            "--loss_weights works with `text`, and with the fields KIND_tail, KIND_first and KIND_shuffled of a "
            "dataset that data_prepare.py post-processed"
        )
    return spans


def parts_of_tokens(spans: text_parts.Spans, offsets: list[tuple[int, int]], before: int, after: int) -> list[int]:
    """The index in PARTS of each token of a text. A token belongs to the part of its last character.

    Args:
        offsets: the first and the last character (excluded) of each token.
        before, after: number of special tokens before the text, which count as question, and after it, which belong to
            the last part.
    """
    found, place = [], 0
    for _, end in offsets:
        while place < len(spans) - 1 and spans[place][1] < end:
            place += 1
        found.append(PARTS.index(str(spans[place][0])))
    return [QUESTION] * before + found + [PARTS.index(str(spans[-1][0]))] * after
