"""Numbers and texts as answers: the form in which they are compared."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

SUPERSCRIPT = {ord(digit): f"^{number}" for number, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
NUMBER = re.compile(
    r"(?<![\w^.,/√])(?<!\^[-+−–])(?<!\d:)(?:[-+−–]\s?)?(?:[$€£¥]\s?)?(?:[-+−]\s?)?"
    r"(?:\d{1,3}(?:[,'’]\d{3})+|\d+)?(?:\.\d+)?(?<=\d)"
    r"(?:[eE][-+]?\d{1,3}|\s?[×x*·⋅]\s?10\^[-+−]?\d{1,3}|(?<=10)(?<![\d.,]10)\^[-+−]?\d{1,3}|\s?/\s?\d+|"
    r"\s\d+/\d+)?"
    r"(?![\d]|[.,/:]\d|\^)(?:\s(?:thousand|million|billion|trillion)\b)?",
    re.IGNORECASE,
)
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
MOST_DIGITS = 400
LIST_NUMBER = re.compile(r"^[^\S\n]{0,12}[*_#>-]{0,4}[^\S\n]{0,4}\d{1,2}[.)](?=[*_]*[^\S\n]+\S)", re.MULTILINE)
"""The number of an item of a list: `1. She sold`."""
AROUND = re.compile(r"\\(?:boxed|text|textbf|textit|mathbf|mathrm|mbox)\{([^{}]*)\}")
LATEX = (
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"(?<=\d)(?:\\,|\{,\})(?=\d{3})"), ","),
    (re.compile(r"(?<=\d)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r" \1/\2"),
    (re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r"\1/\2"),
    *((AROUND, r"\1"),) * 2,
    (re.compile(r"\\times\b|\\cdot\b"), "×"),
    (re.compile(r"\^\{([-+−]?\w+)\}"), r"^\1"),
)
"""LaTeX's form -> what is read in its place. A command can be inside of another one: `\\boxed{\\text{Rome}}`."""
THOUSANDS = re.compile("(?<![\\w.,/])\\d{1,3}(?:[ \u2009\u202f\u00a0]\\d{3})+(?!\\d|\\s?/\\s?\\d)")
"""Thousands with spaces between them. What is before a fraction is not one of them: `1 101/124`."""


def plain(text: str) -> str:
    """A text whose digits, letters and brackets of other scripts and widths become those of ASCII (`（Ｂ）`, `½`), and
    without LaTeX's commands around answers (`\\boxed{72}`, `\\frac{3}{4}`)."""
    for pattern, plainer in LATEX:
        text = pattern.sub(plainer, text)
    text = text.translate(SUPERSCRIPT)
    text = THOUSANDS.sub(lambda found: re.sub(r"\s", ",", found[0]), text)
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    return "".join(
        str(unicodedata.digit(c)) if not c.isascii() and unicodedata.category(c) == "Nd" else c for c in text
    )


def number_in(text: str) -> Fraction | None:
    """The number that a text is, with a currency or a unit around it; None if it is none or has several.

    Fractions (`3/4`, `1 3/4`), thousands (`1,234`), powers of ten (`3 × 10^4`, `2e5`) and `2.5 million` are numbers.
    A unit is ignored: `50%` and `50` are the same number.
    """
    found = list(NUMBER.finditer(text))
    return value_of_number(found[0][0]) if len(found) == 1 else None


def value_of_number(written: str) -> Fraction | None:
    digits = re.sub(r"(?<=\d)[,'’](?=\d{3})", "", written.casefold())
    digits = re.sub(r"[$€£¥]\s?", "", digits).replace("−", "-").replace("–", "-").strip()
    scale = Fraction(1)
    for word, factor in SCALES.items():
        if digits.endswith(word):
            digits, scale = digits.removesuffix(word).strip(), Fraction(factor)
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+- ")
    if len(digits) > MOST_DIGITS:
        return None
    if power := re.fullmatch(r"(?:(.+?)\s?(?:[×x*·⋅]\s?10\^|e)|10\^)([-+]?\d+)", digits):
        digits, scale = power[1] or "1", scale * Fraction(10) ** int(power[2])
    whole, _, part = digits.rpartition(" ") if re.fullmatch(r"\d+ \d+/\d+", digits) else ("0", "", digits)
    try:
        return sign * scale * (int(whole) + Fraction(part.replace(" ", "")))
    except (ValueError, ZeroDivisionError):
        return None


def normal_text(text: str) -> str:
    """A text as SQuAD's evaluation compares it (Rajpurkar et al. 2016, arXiv 1606.05250): in small letters, without
    punctuation and the articles a, an, the, and with single spaces."""
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", without_punctuation(text)).split())


def bare(text: str) -> str:
    """The normal form of a text of which `normal_text` leaves nothing: an article alone (`A`), or a sign (`%`)."""
    words = without_punctuation(text).split()
    return words[-1] if words else MARKS.sub("", text)


MARKS = re.compile(r"[\s.,;:!?'\"“”‘’„`´«»()\[\]{}<>*_~|\\/…–—-]+")
"""Punctuation that is no answer."""


def without_punctuation(text: str) -> str:
    """A text in small letters without punctuation, that of other scripts as well."""
    return "".join(
        c for c in text.lower() if c not in string.punctuation and not unicodedata.category(c).startswith("P")
    )


def f1(answer: str, golds: Sequence[str]) -> float:
    """The highest F1 of the words of an answer with those of a right answer, both in the form of `normal_text`."""
    return max((f1_with(answer.split(), gold.split()) for gold in golds), default=0.0)


def f1_with(answer: list[str], gold: list[str]) -> float:
    common = sum((Counter(answer) & Counter(gold)).values())
    return 2 * common / (len(answer) + len(gold)) if common else 0.0
