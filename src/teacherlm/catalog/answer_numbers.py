"""The number that a text gives: after a conclusion, or the last one. A number that is a part of another expression
(`3x`, `$20k`, `3:30`, `√2`) is no answer."""

import re
from fractions import Fraction

from teacherlm.catalog.answer_marks import REJECTED, doubted, marks_in, rejected_before
from teacherlm.catalog.answer_values import LIST_NUMBER, NUMBER, value_of_number

UNITS = r"(?:[cmk]m|[mk]g|lbs?|oz|ft|mph|ml|hrs?|mins?|kwh|usd|eur)\b"
GLUED_BEFORE = re.compile(
    r"(?:√\s*|sqrt\s*[({]?|[A-Za-zπ0-9]\^?[({_]|[×·/÷^<>≤≥≠]\s*|(?<!\*)\*\s*(?=\S*$)(?<=[\w)]\*)|"
    r"(?<=[\w)])\s\*\s|[+]\s*|"
    r"[\w)%]\s+[-−]\s*|\b(?:twice|double|half|triple|thrice|times|root of|half of|of|plus|minus|log|ln|power|"
    r"divided by|"
    r"multiplied by|step|question|problem|at least|at most|more than|less than|fewer than|over|under|"
    r"up to|greater than)"
    r"\s+)$",
    re.IGNORECASE,
)
"""What precedes a number that is a part of an expression, or a bound."""
GLUED_AFTER = re.compile(
    rf"(?:(?!{UNITS})[A-Za-zπ√^°²³]|!(?=\w)|[:~]\s?\d|\s?(?:[πkKMB×x·+/÷^√~]|bn|mn|hundreds?|dozens?|scores?|"
    rf"gross|pi|squared|cubed|factorial|choose|mod)(?!\w)|\s?\*(?!\*)\s?[\w(]|\s?[-–−]\s?[a-zA-Z]\b(?!['’])|"
    rf"\s(?:[nyz]|more than|less than|fewer than|times|plus|minus|or (?:more|less|fewer|so)|out of)\b)"
)
"""What follows a number that is a part of an expression: `3x`, `20k`, `3 hundred`."""
COMMAND = re.compile(r"\\(?!(?:approx|quad|qquad|boxed|text|left|right|circ|degree|dots|therefore|mathbf)\b)[A-Za-z]+")
"""A command of LaTeX that is not read: `\\sqrt{2}`."""
REASON = re.compile(r"[\s,(–—-]+(?:because|since|as|for|after|due to|given)\b", re.IGNORECASE)
"""What ends an answer before its reason: `72 because 12 + 60 = 72`."""
EQUALS = re.compile(
    r"\(?\s*(?:[=≈]|,?\s*\b(?:which\s+(?:is|equals|gives|makes)|i\.e\.,?|that is,?|equals|(?:is|are)\s+equal\s+to|"
    r"gives|makes)(?:\s|$))\s*",
    re.IGNORECASE,
)
SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-"})
TERM = re.compile(r"(\d+(?:\.\d+)?)(?:/(\d+))?")
JOINED = re.compile(
    r"\s*%?\s*(?:(?:,?\s*(?:or|to|and)\b|[-–~])\s*(?:[a-z]\s*=\s*)?(?:about\s+)?|"
    r"\s(?:hours?|hrs?|h|minutes?|mins?|feet|foot|ft|pounds?|lbs?|years?|months?|weeks?|days?|dollars?|meters?|metres?|"
    r"gallons?|quarts?|cups?|miles?|yards?)[\s,]+(?:and\s+)?)[$€£]?\s*",
    re.IGNORECASE,
)
"""What is between two numbers that make one answer, or two: `10 to 12`, `2 hours 30`."""
CLOSING = re.compile(
    r"(?:(?<=[.!?\n])|(?<=[.!?]\*\*))\s*(?:let me know|i hope|hope (?:this|that)|feel free|do you|would you|please|"
    r"if you|good luck|thank|is there)\b",
    re.IGNORECASE,
)
"""What a text says to its reader after its answer."""
NEGATIVE = re.compile(r"(?<![\d)%\w])(?:minus|negative)\s+(?=[$€£]?\s?[\d.])", re.IGNORECASE)
NO_ANSWER = [""]


def number_after_mark(text: str) -> list[str]:
    """The number after the last conclusion. In an equation it is what both sides are equal to: `12 + 60 = 72`.

    An empty text, which is no answer, is returned if a conclusion has no number, rejects it, or has several. Nothing is
    returned if the steps of a solution follow it.
    """
    marks = marks_in(text)
    if not marks:
        return []
    if marks[-1][0] == "####" and len(marks) > 1 and all(mark[0] == "####" for mark in marks):
        return [number_of(line_after(text, mark.end())) for mark in marks]
    after = text[marks[-1].end() :]
    if re.match(r"[:*_\s]*\n\s*[*_#]*(?:step\s+\d|(?:1[.)]|[-*•])\s+\D)", after, re.IGNORECASE):
        return []
    outweighs = marks[-1][0] == "####"
    return NO_ANSWER if doubted(text, marks[-1]) and not outweighs else [number_of(line_after(text, marks[-1].end()))]


def line_after(text: str, place: int) -> str:
    return text[place : place + 2000].lstrip("\n \t:*").partition("\n")[0].strip()


def number_of(line: str) -> str:
    """The number that the first sentence of a line gives, or an empty text."""
    line = NEGATIVE.sub("-", line)
    line = re.sub(r"\bi\.e\.", "that is", line)
    ended = re.search(r"[.;!?](?=[\s*\"'”)]|$)", line)
    if ended and ended[0] == "?":
        return ""
    sentence = line[: ended.start()] if ended else line
    numbers = list(NUMBER.finditer(sentence))
    if not numbers or COMMAND.search(sentence):
        return ""
    if reason := REASON.search(sentence, numbers[0].end()):
        sentence = sentence[: reason.start()]
        numbers = [one for one in numbers if one.end() <= reason.start()]
    first = numbers[0]
    if rejected_before(without_claim(sentence[: first.start()])) or REJECTED.match(sentence, first.end()):
        return ""
    if len(numbers) > 1 or EQUALS.search(sentence):
        return equal_sides(sentence)
    return first[0] if stands_alone(sentence, first) else ""


def without_claim(before: str) -> str:
    """What precedes a number, up to which nothing is denied about it: `unknown, but`."""
    return re.split(r",\s+(?:so|but)\b", before)[-1]


def equal_sides(sentence: str) -> str:
    """The number that all sides of an equation are equal to (`12 + 60 = 72`), or that a name is (`x = 72`)."""
    values = []
    for side in EQUALS.split(sentence):
        if not NUMBER.search(side):
            if re.search(r"\d", side):
                return ""
            continue
        value = computed(side)
        if value is None:
            return ""
        values.append(value)
    return str(values[0]) if values and len(set(values)) == 1 and (len(EQUALS.split(sentence)) > 1) else ""


def computed(side: str) -> Fraction | None:
    """The value of one side of an equation: a number with its unit, or sums and products of at most 20 of them."""
    found = list(NUMBER.finditer(side))
    if len(found) == 1:
        return value_of_number(found[0][0]) if stands_alone(side, found[0]) else None
    signs = re.sub(r"(?<=\d),(?=\d{3})|[$€£¥]|(?<=\d)\s?(?!x\b)[a-z]+\b", "", side.translate(SIGNS))
    signs = re.sub(r"(?<=\d)\s?x\s?(?=\d)", "*", signs)
    signs = re.sub(r"[\s)(*]*$|^[\s*(]*(?:\w+\s)*?(?=[-\d(.])", "", signs) if signs.count("(") == 0 else signs
    signs = re.sub(r"\s", "", signs)
    if not re.fullmatch(r"-?\d+(?:\.\d+)?(?:[-+*/]\d+(?:\.\d+)?){1,20}", signs) or len(signs) > 200:
        return None
    return sum_of(signs)


def sum_of(signs: str) -> Fraction | None:
    """The value of sums and products of numbers without brackets: `48+24*2`."""
    total = Fraction(0)
    for sign, product in re.findall(r"([-+]?)((?:[\d.]+[*/])*[\d.]+)", signs):
        first, *others = re.split(r"([*/])", product)
        value = Fraction(first)
        for operator, number in zip(others[::2], others[1::2]):
            if operator == "/" and not Fraction(number):
                return None
            value = value / Fraction(number) if operator == "/" else value * Fraction(number)
        total += -value if sign == "-" else value
    return total


def stands_alone(text: str, found: "re.Match[str]") -> bool:
    """Whether a number is no part of an expression, and no bound."""
    before = text[max(0, found.start() - 30) : found.start()]
    subtracted = found[0][0] in "-+−–" and re.search(r"[\w)%]\s*$", before)
    return not subtracted and not GLUED_BEFORE.search(before) and not GLUED_AFTER.match(text, found.end())


def last_of_numbers(text: str) -> list[str]:
    """The last number of a text without the numbers of its steps and without what it says to its reader at its end."""
    for found in CLOSING.finditer(text):
        if NUMBER.search(text, 0, found.start()):
            text = text[: found.start()]
            break
    text = NEGATIVE.sub("-", without_list_numbers(text))
    numbers = list(NUMBER.finditer(text))
    if not numbers:
        return []
    last = numbers[-1]
    joined = len(numbers) > 1 and JOINED.fullmatch(text, numbers[-2].end(), last.start())
    before = text[max(0, last.start() - 150) : last.start()]
    command = COMMAND.search(before[-12:])
    alone = stands_alone(text, last) and not joined and not command and not rejected_before(before)
    return [last[0]] if alone else NO_ANSWER


def without_list_numbers(text: str) -> str:
    """A text without the numbers of its list (`1. ... 2. ...`) and of its steps (`Step 1`)."""
    if len(LIST_NUMBER.findall(text)) > 1:
        text = LIST_NUMBER.sub("", text)
    return re.sub(r"\b(?:step|question|problem|equation|part)\s+#?\d+\b", "", text, flags=re.IGNORECASE)
