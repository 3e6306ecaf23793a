"""A training sample as tokens: a plain text (samples.py) or a conversation (chat_samples.py)."""

from dataclasses import dataclass

from teacherlm.catalog.prompts import completion_start
from teacherlm.core.errors import UserError


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


def find_completion(text: str, field: str, where: str) -> int:
    start = completion_start(text)
    if start is None:
        raise UserError(
            f"{where}: the field {field!r} has no ` A: The answer is`, after which the completion begins; "
            "omit --loss_on completion"
        )
    return start
