"""The text of a question for finetuning and for the test. No other module makes this text.

prompt_sets.py makes the teacher's prompts from it. Source: the code of TeacherLM (He et al. 2023, arXiv 2310.19019),
byte for byte.
"""

import hashlib
import json
import re
import string
from dataclasses import dataclass

LETTERS = string.ascii_uppercase

DEFAULT = "teacherlm"
"""The name of the prompts (prompts/NAME.yaml) that are used by default."""


@dataclass(frozen=True)
class Question:
    """One labelled question, with choices or without (an open question).

    Attributes:
        question: the question alone.
        choices: the texts of the choices, in the order of their letters; empty for an open question.
        gold: index of the right choice; -1 for an open question.
        preamble: the text before `Q: `, with a space at its end, or empty. MMLU's preamble names the subject.
        answers: the right answers of an open question, of which the first is the one to learn.
    """

    question: str
    choices: tuple[str, ...]
    gold: int
    preamble: str = ""
    answers: tuple[str, ...] = ()

    @property
    def with_choices(self) -> str:
        """`question (A) first (B) second`: the field `question` of a test set."""
        return " ".join([self.question, *(f"({letter}) {text}" for letter, text in zip(LETTERS, self.choices))])

    @property
    def answer(self) -> str:
        """`(B)`, or the first right answer of an open question: the field `answer` of a test set."""
        return f"({LETTERS[self.gold]})" if self.choices else self.answers[0]

    @property
    def text(self) -> str:
        """The question with its answer: the field `text` of a training sample."""
        if not self.choices:
            return f"{open_context(self.question, self.preamble)} {full_stop(self.answer)}"
        return f"{test_context(self.with_choices, self.preamble)}{LETTERS[self.gold]})."


ANSWER_BEGINS = " A: The answer is"
"""The text before the answer of an open question. The space after it belongs to the answer's first token."""
ANSWER_MARK = f"{ANSWER_BEGINS} ("
"""The text before the answer's letter. A test's context ends with it, and a student's completion begins after it."""


def test_context(question_with_choices: str, preamble: str = "") -> str:
    """The context of the letters that are scored at test time."""
    return f"{preamble}Q: {question_with_choices}{ANSWER_MARK}"


def open_context(question: str, preamble: str = "") -> str:
    """The context of the answer to an open question, which a student writes."""
    return f"{preamble}Q: {question}{ANSWER_BEGINS}"


WITH_CHOICES = (
    Question("Is  it so? ", ("yes", "no"), 1),
    Question("Which\tone", ("a ", "", " c"), 0, "On birds. "),
)
OPEN = (Question("How  many? ", (), -1, "", ("1,200",)), Question("Who\twas it", (), -1, "On birds. ", ("Dr. W.", "W")))
"""Questions from whose texts digests are computed: with double spaces, an empty choice, a preamble."""


def contexts_digest(is_open: bool = False) -> dict[str, str]:
    """A digest of the texts that this module makes. A result of scoring records it as an input.

    It is computed from the texts of two questions, not from the code.

    Args:
        is_open: whether the texts are those of open questions.
    """
    samples = OPEN if is_open else WITH_CHOICES
    made = [(question.with_choices, question.answer, question.text) for question in samples]
    return {"path": "prompts", "sha256": hashlib.sha256(json.dumps(made).encode()).hexdigest()}


ANSWER_PLACE = re.compile(re.escape(ANSWER_BEGINS) + r"(?![\w'’])(?: \((?=[A-Z]\)|\Z))?")
"""ANSWER_MARK where a letter follows or the text ends, otherwise ANSWER_BEGINS."""


def completion_start(text: str) -> int | None:
    """The position of the answer's letter in a sample's text (`text`, `cot_tail`, ...), or None if there is none. The
    answer to an open question begins with the space before it."""
    found = ANSWER_PLACE.search(text)
    return found.end() if found else None


def split_answer(text: str) -> tuple[str, str, str]:
    """Split a sample's `text` or a test's context at its last answer.

    Returns:
        What precedes the answer's mark; the mark, ANSWER_MARK or ANSWER_BEGINS; what follows it. Without a mark:
        (text, "", "").
    """
    found = None
    for found in ANSWER_PLACE.finditer(text):
        pass
    return (text[: found.start()], found[0], text[found.end() :]) if found else (text, "", "")


def split_question(text: str) -> tuple[str, tuple[str, ...]]:
    """Split a sample's `text` or a test's context into (question, choices). If it has several questions, use the last.
    An open question has no choices, even if there are letters in brackets in it.

    If the question itself contains letters in brackets, the choices are the longest sequence of letters; of several
    equally long ones, the last.
    """
    before, mark, _ = split_answer(text)
    _, earlier, after = split_answer(before)
    before = after if earlier else before
    question = before.partition("Q: ")[2] or before
    return (question, ()) if mark == ANSWER_BEGINS else split_choices(question)


def split_choices(question: str) -> tuple[str, tuple[str, ...]]:
    """Split `question (A) first (B) second` into the question and its choices. Without letters there are no choices."""
    row = longest_row(question)
    if len(row) < 2:
        return question, ()
    ends = [*row[1:], len(question)]
    return question[: row[0]], tuple(question[start + 5 : end] for start, end in zip(row, ends))


MARK = re.compile(r"(?= \(([A-Z])\) )")
"""A letter in brackets. The matches overlap: if a choice is empty, the marks of two letters share a space."""


def longest_row(question: str) -> list[int]:
    """The positions of ` (A) `, ` (B) `, ... in the longest sequence of letters; of equally long ones, in the last.

    In a sequence, a letter is followed by the nearest later occurrence of the next letter of the alphabet. One pass
    from the end finds the sequences from all positions, so the time is linear in the length of any text.
    """
    marks = [(match.start(), match[1]) for match in MARK.finditer(question)]
    firsts = {match.start() for match in re.finditer(re.escape(" (A) "), question)}  # only one in ` (A) (A) `
    nearest: dict[str, int] = {}
    following: dict[int, int | None] = {}
    lengths: dict[int, int] = {}
    best = None
    for start, letter in reversed(marks):
        after = nearest.get(chr(ord(letter) + 1))
        following[start], lengths[start] = after, 1 + (0 if after is None else lengths[after])
        nearest[letter] = start
        if start in firsts and (best is None or lengths[start] > lengths[best]):
            best = start
    row = []
    while best is not None:
        row.append(best)
        best = following[best]
    return row


def full_stop(text: str) -> str:
    """Add a full stop to a text without closing punctuation (. , ? ! or a quote, the reference's list for MMLU)."""
    return text if text.endswith((".", ",", "?", "!", '"')) else text + "."


def remove_duplicated_block(text: str) -> str:
    """Replace double spaces by single ones in one pass (four become two). If the text ends with a space, strip it.

    The name and these corner cases are the reference's, because the teachers were trained on prompts cleaned like this.
    """
    text = text.replace("  ", " ")
    return text.strip(" ") if text.endswith(" ") else text
