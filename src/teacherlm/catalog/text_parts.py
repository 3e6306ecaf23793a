"""The parts of a text that a student is trained on: the question, the right answer, and the explanations.

A template may put them in any order and change their blanks. The parts are therefore found by rendering the template a
second time, with marks around the answer (its letter, or all of an open one) and around each explanation. If the template makes another text with
marks, its parts are unknown.
"""

import json
import re

from teacherlm.catalog.prompts import ANSWER_BEGINS, split_answer
from teacherlm.core.records import Record

PARTS = ("question", "answer", "explanation")
QUESTION, ANSWER, EXPLANATION = range(len(PARTS))
COLUMN = "parts"
"""The field of a dataset with the parts of a row's training texts: JSON, {field: [[part, end], ...]}. `end` is the
number of characters up to the end of the part."""

Spans = list[list[str | int]]
"""[[part, end], ...], without gaps: ["question", 118] is the text up to its 118th character."""

OPEN_ANSWER, CLOSE_ANSWER, OPEN_EXPLANATION, CLOSE_EXPLANATION = "\ufdd0\ufdd1\ufdd2\ufdd3"
"""Code points that are not characters (Unicode, section 23.7), so that no text has them."""
MARK = re.compile(f"([{OPEN_ANSWER}-{CLOSE_EXPLANATION}])")
PUNCTUATION = re.compile(r"[^\w\s]*")


def marked_text(text: str) -> str:
    """A sample's text (`Q: ... A: The answer is (B).`) with marks around its right answer: its letter, or all of it."""
    before, mark, after = split_answer(text)
    if mark == ANSWER_BEGINS:
        return f"{before}{mark}{marked_answer(after)}"
    return f"{before}{mark}{marked_answer(after[:1])}{after[1:]}" if after else text


def marked_answer(answer: str) -> str:
    """A letter, or the answer to an open question, with marks around it. Its last punctuation is outside of them,
    because a template may look at it."""
    core = answer.rstrip('.,?!"') or answer
    return f"{OPEN_ANSWER}{core}{CLOSE_ANSWER}{answer[len(core) :]}"


def marked_explanation(text: str) -> str:
    """An explanation with marks inside of its outer blanks, which a template may trim."""
    core = text.strip()
    start = text.find(core)
    return f"{text[:start]}{OPEN_EXPLANATION}{core}{CLOSE_EXPLANATION}{text[start + len(core) :]}" if core else text


def spans_of(marked: str, plain: str) -> Spans | None:
    """The parts of a text, from the text with marks; None if they are unknown.

    The question is what precedes the first mark. The answer is its letter, or the answer to an open question, with the
    punctuation after it. Everything
    else is explanation: a template's words before an explanation, or between it and the answer, are learned with it.
    """
    first, *pieces = MARK.split(marked)  # text, mark, text, mark, ..., text
    if not pieces or first + "".join(pieces[1::2]) != plain:
        return None
    spans: Spans = [[PARTS[QUESTION], len(first)]] if first else []
    end = len(first)
    for mark, text in zip(pieces[::2], pieces[1::2]):
        punctuation = PUNCTUATION.match(text)[0] if mark == CLOSE_ANSWER else ""  # type: ignore[index]
        kind = ANSWER if mark == OPEN_ANSWER else EXPLANATION
        for part, count in ((ANSWER, len(punctuation)), (kind, len(text) - len(punctuation))):
            end += count
            if count and spans and spans[-1][0] == PARTS[part]:
                spans[-1][1] = end
            elif count:
                spans.append([PARTS[part], end])
    return spans


def spans_of_plain(text: str) -> Spans | None:
    """The parts of a text without an explanation (`Q: ... A: The answer is (B).`); None if it has no answer. The answer
    to an open question begins with the space before it, as its first token does."""
    before, mark, after = split_answer(text)
    return [[PARTS[QUESTION], len(before + mark)], [PARTS[ANSWER], len(text)]] if after else None


def written(spans: dict[str, Spans]) -> str:
    """The field COLUMN of a row."""
    return json.dumps(spans, separators=(",", ":"))


def without_last_blanks(spans: Spans, text: str) -> Spans:
    """The same parts, in which a question ends before its last blanks. They are written by the student: a prompt at
    test time ends with `A:`."""
    if len(spans) < 2 or spans[0][0] != PARTS[QUESTION] or type(spans[0][1]) is not int:
        return spans
    end = len(text[: spans[0][1]].rstrip(" "))
    return [[PARTS[QUESTION], end], *spans[1:]] if end else spans


def read(row: Record, field: str) -> Spans | None:
    """The parts of a field of a row, whose field COLUMN may be missing; None if they are unknown."""
    known = json.loads(row[COLUMN]) if row.get(COLUMN) else {}
    if field in known:
        spans: Spans = known[field]
        return without_last_blanks(spans, row[field])
    return spans_of_plain(row[field]) if field == "text" else None
