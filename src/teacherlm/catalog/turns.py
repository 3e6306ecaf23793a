"""The two turns of a sample for a chat student: what the user asks, and what the assistant answers.

A sample is a text such as `Q: Is it so? (A) yes (B) no A: The answer is (B).` A chat student gets the question as the
user's turn and learns, or writes, what follows `A:` as the assistant's turn.
"""

import re

TURN = " A:"
"""The mark after which the answer begins."""
ASKED = re.compile(r"(?:^|(?<=[.!?:] )|(?<=\n\n))Q: ")
"""The mark before a question: at the beginning of a text, after a preamble, or after an example."""


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
    has_examples = TURN in asked and len(ASKED.findall(asked)) > 1
    return asked if has_examples else ASKED.sub("", asked, count=1), text[border + len(TURN) :].removeprefix(" ")
