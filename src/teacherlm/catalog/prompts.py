"""How a question becomes text: for the teacher, for finetuning and for the test. Nothing else in the project does this.

Source: the prompts of TeacherLM (He et al. 2023, arXiv 2310.19019), byte for byte as its code has them.
"""

import hashlib
import json
import re
import string
from dataclasses import dataclass

LETTERS = string.ascii_uppercase

PROMPTS = {
    "cot_text": " Let's think step by step.",
    "error_text": " The common mistakes are:",
    "fundamental_text": " The fundamental of this question is:",
}
"""Prompt field -> what it adds to `text`."""

KINDS = {"cot_text": "cot", "error_text": "error", "fundamental_text": "fundamental"}
"""Prompt field -> the kind of explanation that the teacher writes after it."""

TAILS = tuple(f"{kind}_tail" for kind in KINDS.values())

FULL_ORDER = ("fundamental_text", "cot_text", "error_text")
"""The order of the three explanations in `full_tail`: as in the paper's figure 1."""


@dataclass(frozen=True)
class Question:
    """One labelled multiple-choice question.

    Attributes:
        question: the question alone.
        choices: the texts of the choices, in the order of their letters.
        gold: index of the right choice.
        preamble: what stands before `Q: ` (MMLU names the subject there), with its closing blank; else empty.
    """

    question: str
    choices: tuple[str, ...]
    gold: int
    preamble: str = ""

    @property
    def with_choices(self) -> str:
        """`question (A) first (B) second`: the field `question` of a test set."""
        return " ".join([self.question, *(f"({letter}) {text}" for letter, text in zip(LETTERS, self.choices))])

    @property
    def answer(self) -> str:
        """`(B)`: the field `answer` of a test set."""
        return f"({LETTERS[self.gold]})"


ANSWER_MARK = " A: The answer is ("
"""After it comes the letter: where a test's context ends, and the text that a student should learn to write begins."""


def test_context(question_with_choices: str, preamble: str = "") -> str:
    """What stands before the letter that is scored at test time."""
    return f"{preamble}Q: {question_with_choices}{ANSWER_MARK}"


def completion_start(text: str) -> int | None:
    """Where in a sample's text (`text`, `cot_tail`, ...) the question ends and the letter stands; None: nowhere."""
    position = text.find(ANSWER_MARK)
    return None if position < 0 else position + len(ANSWER_MARK)


def take_apart(text: str) -> tuple[str, tuple[str, ...]]:
    """(question, choices) of a sample's `text` or of a test's context: of its last question, where it has several.

    Where letters in brackets stand in the question too, the choices are the longest row of letters, the last of several
    that are equally long.
    """
    before = text.rpartition(ANSWER_MARK)[0] or text
    before = before[before.rfind(ANSWER_MARK) + 1 :]
    return split_choices(before.partition("Q: ")[2] or before)


def split_choices(question: str) -> tuple[str, tuple[str, ...]]:
    """`question (A) first (B) second` -> the question and its choices; none where no row of letters is."""
    row = longest_row(question)
    if len(row) < 2:
        return question, ()
    ends = [*row[1:], len(question)]
    return question[: row[0]], tuple(question[start + 5 : end] for start, end in zip(row, ends))


MARK = re.compile(r"(?= \(([A-Z])\) )")
"""A letter in brackets; the blank after it may be the one before the next: an empty choice."""


def longest_row(question: str) -> list[int]:
    """Where ` (A) `, ` (B) `, ... of the longest row of letters stand; of equally long ones, of the last.

    After a letter comes the next place of the letter that follows it in the alphabet. One pass from the end finds the
    rows of all places, so the time grows with the length of the text, whatever stands in it.
    """
    marks = [(match.start(), match[1]) for match in MARK.finditer(question)]
    firsts = {match.start() for match in re.finditer(re.escape(" (A) "), question)}  # of ` (A) (A) ` only one
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


def prompt_fields(question: Question) -> dict[str, str]:
    """The four prompt fields of a sample: `text` as it is, the three for the teacher with blanks cleaned."""
    text = test_context(question.with_choices, question.preamble) + question.answer.removeprefix("(") + "."
    return {"text": text, **{field: remove_duplicated_block(text + ending) for field, ending in PROMPTS.items()}}


def prompts_digest() -> dict[str, str]:
    """What a stage whose output has prompts in it writes among its inputs: a digest of what the templates above make.

    It is taken of texts, not of this file: of questions with two choices, with blanks that are cleaned, and with a
    preamble.
    """
    asked = [Question("Is  it so? ", ("yes", "no"), 1), Question("Which\tone", ("a ", "", " c"), 0, "On birds. ")]
    made: list[object] = [PROMPTS, KINDS, TAILS]
    for question in asked:
        fields = prompt_fields(question)
        made += [fields, full_tail(fields["text"], {field: f" {kind}  . " for field, kind in KINDS.items()})]
    return {"path": "prompts", "sha256": hashlib.sha256(json.dumps(made).encode()).hexdigest()}


def full_tail(text: str, explanations: dict[str, str]) -> str:
    """Question, answer and all three explanations, each after its prompt.

    Args:
        text: the sample's field `text`.
        explanations: prompt field -> completion, all three.
    """
    return remove_duplicated_block(text + "".join(PROMPTS[field] + explanations[field] for field in FULL_ORDER))


def remove_duplicated_block(text: str) -> str:
    """Double blanks become single, in one pass (so four become two); with trailing blanks, those at both ends go.

    The name and the corner cases are the reference's: teachers were trained on prompts cleaned like this.
    """
    text = text.replace("  ", " ")
    return text.strip(" ") if text.endswith(" ") else text
