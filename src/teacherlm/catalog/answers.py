"""Answers that were written: which answer a text gives, and whether it is right.

A benchmark's YAML says with which rules an answer is found in a text (`extract`), and what an answer is: the letter of
a choice, a number, or a text. The rules are tried in turn. The first that finds something decides, and if it finds two
different answers, the text has no answer.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import regex

from teacherlm.catalog.answer_letters import letters_after_mark, lone_letters, named_choices
from teacherlm.catalog.answer_marks import doubted, every_mark, first_sentence, marks_in, own_text
from teacherlm.catalog.answer_numbers import last_of_numbers, number_after_mark
from teacherlm.catalog.answer_values import bare, normal_text, number_in, plain
from teacherlm.catalog.answer_values import f1 as f1
from teacherlm.catalog.prompts import LETTERS
from teacherlm.core.errors import UserError
from teacherlm.core.limits import ANSWER_CHARACTERS, PATTERN_CHARACTERS, PATTERN_SECONDS

Kind = Literal["letter", "number", "text"]


@dataclass(frozen=True)
class Asked:
    """What a question asks for.

    Attributes:
        kind: what an answer is.
        golds: the right answers: letters, numbers or texts. Each of them is right.
        choices: the texts of the choices, in the order of their letters; empty without choices.
        rules: the names of RULES, and patterns, with which an answer is found in a text.
        source: the file that has the rules, for messages.
    """

    kind: Kind
    golds: tuple[str, ...]
    choices: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    source: str = field(default="", compare=False)


def read_answer(text: str, asked: Asked) -> str | None:
    """The answer that a text gives, in the form in which answers are compared and counted; None if it gives none.

    Returns:
        The letter of a choice; a number as a fraction (`72`, `7/2`); or a text in small letters without articles and
        punctuation.

    Raises:
        UserError: a pattern takes too long.
    """
    text = plain(own_text(text)[-ANSWER_CHARACTERS:])
    for rule in asked.rules or DEFAULT_RULES[asked.kind]:
        found = RULES[rule](text, asked) if rule in RULES else matches_of(rule, text, asked.source)
        values = dict.fromkeys(value for one in found if (value := value_of(one, asked)) is not None)
        if values:
            return next(iter(values)) if len(values) == 1 else None
        if found and rule in FINAL:
            return None
    return None


def up_to_conclusion(text: str, asked: Asked) -> str:
    """A text up to its first conclusion (`The answer is (B)`) that gives an answer, with what follows it up to the next
    one; the whole text if there is none."""
    marks = [mark.start() for mark in every_mark(text)]
    for start, end in zip(marks, [*marks[1:], len(text)]):
        if read_answer(text[start:end], asked) is not None:
            return text[:end]
    return text


def gold_values(asked: Asked) -> tuple[str, ...]:
    """The right answers in the form of `read_answer`.

    Raises:
        ValueError: a right answer is not what an answer should be, for example not a number.
    """
    values = []
    for gold in asked.golds:
        value = value_of(plain(gold), asked)
        if value is None:
            raise ValueError(f"{gold!r:.60} is not a {asked.kind}")
        values.append(value)
    return tuple(dict.fromkeys(values))


def value_of(answer: str, asked: Asked) -> str | None:
    """An answer in the form in which answers are compared; None if it is not an answer of this kind."""
    if asked.kind == "letter":
        letter = answer.strip().strip("()[]{}.:*\"'“” ").upper()
        return letter if letter and letter in tuple(LETTERS[: len(asked.choices) or len(LETTERS)]) else None
    if asked.kind == "number":
        number = number_in(answer)
        return None if number is None else str(number)
    return normal_text(answer) or bare(answer) or None


# --------------------------------------------------------------------------------------------------------------- rules


def concluded_letters(text: str, asked: Asked) -> list[str]:
    return letters_after_mark(text)


def letters(text: str, asked: Asked) -> list[str]:
    return lone_letters(text)


def choices(text: str, asked: Asked) -> list[str]:
    return named_choices(text, asked.choices)


def concluded_numbers(text: str, asked: Asked) -> list[str]:
    return number_after_mark(text)


def last_number(text: str, asked: Asked) -> list[str]:
    return last_of_numbers(text)


def concluded_texts(text: str, asked: Asked) -> list[str]:
    """What follows the last `The answer is`, up to the end of its sentence or line."""
    for mark in marks_in(text)[-1:]:
        line = text[mark.end() :].lstrip("\n \t:*").partition("\n")[0].strip()
        return [""] if doubted(text, mark) else [sentence_or_gold(line, asked)]
    return []


NAMED_FIRST = re.compile(r"\s*(\S.{0,80}?)\s+(?:is|was|are)\s+(?:the|my|our)\s+(?:\w+\s+)?answer\b")


def first_line(text: str, asked: Asked) -> list[str]:
    """The first sentence of the first line, or what it says is the answer: `Paris is the answer`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and (named := NAMED_FIRST.match(lines[0])):
        return [named[1]]
    return [sentence_or_gold(line, asked) for line in lines[:1]]


def sentence_or_gold(line: str, asked: Asked) -> str:
    """The first sentence of a line; all of the line if it is a right answer, for example a name with a full stop."""
    whole = value_of(line, asked) if asked.kind == "text" else None
    right = whole is not None and whole in {value_of(plain(gold), asked) for gold in asked.golds}
    return line if right else first_sentence(line)


RULES: dict[str, Callable[[str, Asked], list[str]]] = {
    "conclusion": concluded_letters,
    "letter": letters,
    "choice": choices,
    "concluded_number": concluded_numbers,
    "last_number": last_number,
    "concluded_text": concluded_texts,
    "first_line": first_line,
}
"""The rules that a YAML can name in `extract`: name -> the answers that a text gives by the rule."""
DEFAULT_RULES: dict[Kind, tuple[str, ...]] = {
    "letter": ("conclusion", "letter", "choice"),
    "number": ("concluded_number", "last_number"),
    "text": ("concluded_text", "first_line"),
}
RULES_OF: dict[Kind, tuple[str, ...]] = {
    "letter": ("conclusion", "letter", "choice"),
    "number": ("concluded_number", "last_number", "concluded_text", "first_line"),
    "text": ("concluded_text", "first_line"),
}
"""The rules that can find an answer of a kind."""
FINAL = ("conclusion", "concluded_number", "concluded_text")
"""Rules after which no other is tried if what they find is no answer: `The answer is (E)` of two choices."""


def matches_of(pattern: str, text: str, source: str) -> list[str]:
    """The last match of a pattern: its group `answer`, or its first group.

    Raises:
        UserError: the pattern takes too long.
    """
    groups = [
        match["answer"] if "answer" in match.re.groupindex else match[1] for match in found_by(pattern, text, source)
    ]
    return [one for one in groups if one][-1:]


def places_of(pattern: str, text: str, source: str) -> list[int]:
    """Where the matches of a pattern begin.

    Raises:
        UserError: the pattern takes too long.
    """
    return [match.start() for match in found_by(pattern, text, source)]


def found_by(pattern: str, text: str, source: str) -> "list[regex.Match[str]]":
    try:
        return list(compiled(pattern).finditer(text, timeout=PATTERN_SECONDS))
    except TimeoutError:
        said = f"the pattern {pattern!r:.80} takes longer than {PATTERN_SECONDS:.0f} s for one text; make it simpler"
        raise UserError(f"{source}: extract: {said}" if source else f"extract: {said}") from None


TOO_MUCH = re.compile(r"\(\?(?:R|[+-]?\d|&|P>)|\{\d*,?\d{5,}")
"""Recursion and large repetitions, with which a pattern can take all memory."""


@functools.cache
def compiled(pattern: str) -> "regex.Pattern[str]":
    """A pattern of a YAML.

    Raises:
        ValueError: it is not a valid regular expression with a group.
    """
    if len(pattern) > PATTERN_CHARACTERS:
        raise ValueError(f"{pattern!r:.80}: a pattern must not have more than {PATTERN_CHARACTERS} characters")
    if found := TOO_MUCH.search(pattern):
        raise ValueError(f"{pattern!r:.80}: a pattern must not have {found[0]}")
    try:
        made = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"{pattern!r:.80} is neither one of {', '.join(RULES)} nor a valid pattern: {error}"
        ) from error
    if not made.groups:
        raise ValueError(
            f"{pattern!r:.80}: one of {', '.join(RULES)} was expected, or a pattern with a group around the answer"
        )
    return made


def require_rule(rule: str, kind: Kind) -> None:
    """Refuse an item of `extract` that is neither a rule for this kind of answers nor a pattern.

    Raises:
        ValueError: the message says what was expected.
    """
    if rule in RULES:
        if rule not in RULES_OF[kind]:
            raise ValueError(f"{rule} finds no {kind}; one of {', '.join(RULES_OF[kind])} was expected, or a pattern")
    else:
        compiled(rule)
