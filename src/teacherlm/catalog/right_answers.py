"""The right answers of a sample, as a benchmark's YAML says them."""

from collections.abc import Mapping, Sequence
from typing import Any

from teacherlm.catalog.answers import Asked, Kind, gold_values
from teacherlm.catalog.prompts import ANSWER_BEGINS
from teacherlm.core.errors import UserError
from teacherlm.core.terminal import shown

OF_CHOICES, OPEN = ("letter", "index", "text"), ("number", "text")
"""What `answer_is` can be with choices, and without."""


def texts_at(sample: Mapping[str, Any], path: str, where: str) -> list[str]:
    """The texts of a list in a sample.

    Args:
        path: the names that lead to the list: `answers`, or `answers.text` for a field of an object.

    Raises:
        UserError: there is no such list, or it is empty, or it has something else than texts and numbers.
    """
    found: Any = sample
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    if isinstance(found, str | int | float):
        found = [found]
    is_list = isinstance(found, Sequence) and all(isinstance(one, str | int | float) for one in found)
    if not is_list or not found:
        what = "is empty" if is_list else f"is {shown(found)}"
        raise UserError(f"{where}: the field {path!r} {what}; a list of right answers was expected")
    return [str(one) for one in found]


def right_answers(answers: Sequence[str], kind: Kind, field: str, where: str, decides: str) -> tuple[str, ...]:
    """Right answers on one line each, without those that occur earlier.

    Args:
        field: the fields that they are from, for messages.
        decides: which line of the YAML says what an answer is, for messages.

    Raises:
        UserError: an answer is empty, is not a number where numbers are expected, or has the text before an answer.
    """
    found = list(dict.fromkeys(" ".join(answer.split()) for answer in answers))
    for answer in found:
        try:
            gold_values(Asked(kind, (answer,)))
        except ValueError:
            expected = "a number" if kind == "number" else "a text with letters or digits"
            raise UserError(
                f"{where}: the field {field} is {shown(answer)}; {expected} was expected ({decides})"
            ) from None
        if ANSWER_BEGINS in answer:
            raise UserError(f"{where}: the field {field} has the words `{ANSWER_BEGINS}`, which precede an answer")
    return tuple(found)
