"""The two turns of a sample for a chat student: what the user asks, and what the assistant answers.

A sample is a text such as `Q: Is it so? (A) yes (B) no A: The answer is (B).` A chat student gets the question as the
user's turn and learns, or writes, what follows `A:` as the assistant's turn.
"""

import re

TURN = " A:"
"""The mark after which the answer begins."""
ASKED = re.compile(r"^Q: |(?<=[.!?:] )Q: ")
"""The mark before the question, at the beginning of a text or after a preamble."""


def split_turns(text: str, end: int | None = None) -> tuple[str, str] | None:
    """(the user's turn, what the assistant's turn has so far) of a sample's text; None if it has no ` A:`.

    The user's turn is the question without its mark `Q: `, after the preamble if there is one. If examples precede the
    question, each question keeps its mark.

    Args:
        end: the position where the answer or the explanation begins, or later than that mark; the mark is the last one
            before it. A question may contain ` A:` itself.
    """
    border = text.rfind(TURN, 0, end)
    if border < 0:
        return None
    asked = text[:border]
    return asked if TURN in asked else ASKED.sub("", asked, count=1), text[border + len(TURN) :].removeprefix(" ")
