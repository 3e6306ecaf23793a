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

from teacherlm.catalog.answer_values import NUMBER, bare, normal_text, number_in, plain
from teacherlm.catalog.answer_values import f1 as f1
from teacherlm.catalog.prompts import LETTERS
from teacherlm.core.errors import UserError
from teacherlm.core.limits import ANSWER_CHARACTERS, PATTERN_CHARACTERS, PATTERN_SECONDS

Kind = Literal["letter", "number", "text"]
NEGATED = re.compile(
    r"(?:\bnot|n['’]t|\bneither|\bnor|\bnever|\bwrong|\bincorrect)(?:\s+(?:a|an|the|be|is|by|option|choice|answer))*"
    r"[\s:*\"'“(\[]*$",
    re.IGNORECASE,
)
"""What precedes a letter or a choice that a text rejects: `It is not (`."""
REJECTED = re.compile(
    r"[)\]\s\"'”*]*(?:is|are|was|were)(?:\s+(?:not|never|wrong|incorrect|false|ruled out|impossible)\b|n['’]t\b)",
    re.IGNORECASE,
)
"""What follows a letter that a text rejects: `(A) is wrong`."""


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
    text = plain(text[-ANSWER_CHARACTERS:])
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
    marks = [mark.start() for mark in CONCLUSION.finditer(text)]
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

CONCLUSION = re.compile(r"\banswer(?:\s+is\b|\s*:|\s*=)|####", re.IGNORECASE)
"""What precedes an answer: `The answer is`, `Answer:`, and GSM8K's `####`."""
OPENING = r"(?:\\(?:boxed|text|textbf|mathbf)\{|[\s:*_\"'“$(\[])*"
OPTION = r"(?:(?i:option|choice)\s+)?"
LETTER_NEXT = re.compile(
    rf"{OPENING}{OPTION}{OPENING}([A-Z])(?![A-Za-z0-9'’])|{OPENING}{OPTION}[(\[]([a-z])[)\]]|{OPENING}([a-z])\)"
)
ANOTHER = re.compile(r"[)\]\s\"'”*,]*(?:or|and|and/or|/|,|&)[\s(\[\"'“*]*([A-Z])(?:[)\]]|(?![A-Za-z'’]))")
"""A second letter in a conclusion: `(A) or (B)`."""
BRACKETED = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
LISTED = re.compile(r"[\s*_\"'“]*([A-Z])[).](?:\s|\*|$)|[\s*_\"'“]*([a-z])\)(?:\s|\*|$)")


def concluded_letters(text: str, asked: Asked) -> list[str]:
    """The letter or letters of the last conclusion: `The answer is (B)`."""
    for mark in reversed(list(CONCLUSION.finditer(text))):
        if found := LETTER_NEXT.match(text, mark.end()):
            letters = [next(group for group in found.groups() if group)]
            if REJECTED.match(text, found.end()):
                continue
            while other := ANOTHER.match(text, found.end()):
                letters.append(other[1])
                found = other
            return letters
    return []


def lone_letters(text: str, asked: Asked) -> list[str]:
    """The letters in brackets that the text does not reject; without any, the letter that is all of the text, or that
    its first or last line begins with: `B. False`."""
    letters = [
        mark[1]
        for mark in BRACKETED.finditer(text)
        if not NEGATED.search(text[: mark.start()][-80:]) and not REJECTED.match(text, mark.end())
    ]
    if letters or BRACKETED.search(text):
        return letters
    lines = [line for line in text.splitlines() if line.strip()]
    for line in dict.fromkeys([*lines[:1], *lines[-1:]]):
        if found := ALONE.fullmatch(line) or LISTED.match(line):
            letters.append(next(group for group in found.groups() if group))
    return letters


def named_choices(text: str, asked: Asked) -> list[str]:
    """The letters of the choices whose texts occur and are not rejected. One inside of another does not count."""
    words, places = f" {spaced(text)} ", []
    for letter, choice in zip(LETTERS, asked.choices):
        if wanted := spaced(choice).rstrip(" .!?"):
            places += [
                (found.start() + 1, found.start() + 1 + len(wanted), letter)
                for found in re.finditer(rf"(?= {re.escape(wanted)} )", words)
            ]
    letters = []
    for start, end, letter in places:
        inside = any(a <= start and end <= b and (a, b) != (start, end) for a, b, _ in places)
        if not inside and not NEGATED.search(words[:start][-80:]):
            letters.append(letter)
    return letters


def spaced(text: str) -> str:
    """The words and the punctuation of a text in small letters, with single spaces between them. Words and numbers keep
    the punctuation inside of them (`don't`, `3.5`, `-3`, `50%`)."""
    return " ".join(re.findall(r"[-+−]?\w+(?:[.,'’/-]\w+)*%?|[^\W\s]", text.casefold()))


def concluded_lines(text: str) -> list[str]:
    """What follows the last `The answer is`, up to the end of its line."""
    marks = list(CONCLUSION.finditer(text))
    return [text[marks[-1].end() :].lstrip("\n \t:*").partition("\n")[0].strip()] if marks else []


def concluded_texts(text: str, asked: Asked) -> list[str]:
    """What follows the last `The answer is`, up to the end of its sentence or line."""
    return [first_sentence(line) for line in concluded_lines(text)]


SENTENCE_END = re.compile(r"[.!?][)\"'”’*]*(?=\s+[\"'“‘(*]*([A-Z]\w*|\d))")
ABBREVIATED = re.compile(r"(?:^|[\s.(])(?:[A-Z][a-z]?|Mrs|Prof|Gen|Col|Capt|Rev|Gov|Sen|Inc|Ltd)$")
"""An abbreviation before a full stop (`Dr`, `J`), which ends no sentence unless one of STARTERS follows."""
STARTERS = (
    *("A", "And", "As", "Because", "But", "He", "I", "In", "It", "On", "She", "Since", "So", "That", "The", "There"),
    *("These", "They", "This", "Those", "We"),
)


def first_sentence(line: str) -> str:
    for end in SENTENCE_END.finditer(line):
        if not ABBREVIATED.search(line, 0, end.start()) or end[1] in STARTERS:
            return line[: end.start()]
    return line


def concluded_numbers(text: str, asked: Asked) -> list[str]:
    """The number after the last `The answer is`. In an equation it is the last one: `The answer is 12 + 60 = 72`.

    If a conclusion has no number, or rejects it, an empty text is returned, which is no answer.
    """
    for line in concluded_lines(text):
        sentence = re.split(r"[.;!?](?=\s|$)", line)[0]
        sentence = sentence.rpartition("=")[2] or sentence
        numbers = list(NUMBER.finditer(sentence))
        if not numbers or NEGATED.search(sentence[: numbers[0].start()]):
            return [""]
        found = [numbers[0]]
        for other in numbers[1:]:
            if not re.fullmatch(
                r"[^\d]{0,20}?\s*(?:or|and|to|-|–)\s*[^\d\s]?", sentence[found[-1].end() : other.start()]
            ):
                break
            found.append(other)
        return [one[0] for one in found]
    return []


def last_number(text: str, asked: Asked) -> list[str]:
    numbers = [found[0] for found in NUMBER.finditer(text)]
    return numbers[-1:]


def first_line(text: str, asked: Asked) -> list[str]:
    """The first sentence of the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [first_sentence(line) for line in lines[:1]]


RULES: dict[str, Callable[[str, Asked], list[str]]] = {
    "conclusion": concluded_letters,
    "letter": lone_letters,
    "choice": named_choices,
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
