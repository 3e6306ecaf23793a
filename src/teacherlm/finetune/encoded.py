"""A training sample as tokens: a plain text (samples.py) or a conversation (chat_samples.py)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from teacherlm.catalog.prompts import completion_start
from teacherlm.catalog.text_parts import PARTS, QUESTION
from teacherlm.catalog.turns import TURN
from teacherlm.core.errors import UserError
from teacherlm.finetune.loss_parts import known_spans


@dataclass(frozen=True)
class EncodedSample:
    """A sample as tokens.

    Attributes:
        ids: the tokens.
        opened: number of tokens before the assistant's turn; 0 for a plain text.
        skipped: number of tokens on the left without a loss.
        parts: the index in PARTS of each token; empty if it was not asked for.
        tokens: number of tokens before the cut.
    """

    ids: list[int]
    opened: int
    skipped: int
    parts: list[int]
    tokens: int


def find_completion(row: Mapping[str, Any], field: str, where: str) -> int:
    """The position in a field's text at which the completion begins: the answer's letter, or an explanation that stands
    between `A:` and the answer (KIND_first).

    Args:
        row: a row of a dataset with the field, and with the parts of its texts if they are known.
        where: what messages call the row.

    Raises:
        UserError: the text has no completion.
    """
    text = row[field]
    start = completion_start(text)
    spans = known_spans(row, field, where)
    question = int(spans[0][1]) if spans and spans[0][0] == PARTS[QUESTION] else None
    if question is not None and (start is None or start > question):  # an explanation may begin with `The answer is`
        turn = text.rfind(TURN, 0, question)
        start = turn + len(TURN) if turn >= 0 else None
    if start is None:
        raise UserError(
            f"{where}: the field {field!r} has no ` A: The answer is`, after which the completion begins; "
            "omit --loss_on completion"
        )
    return start
