"""The letter of a choice that a text gives: after a conclusion, in brackets, or by the text of its choice."""

import re
from collections.abc import Sequence

from teacherlm.catalog.answer_marks import REJECTED, RETRACTED, concluding, doubted, marks_in, rejected_before
from teacherlm.catalog.answer_values import LIST_NUMBER, plain
from teacherlm.catalog.prompts import LETTERS

OPENING = r"(?:\\(?:boxed|text|textbf|mathbf)\{|[\s:*_\"'“$(\[])*"
OPTION = r"(?:(?i:option|choice)\s+)?"
AFTER_LETTER = (
    r"(?=\s*(?:$|\n|[)\]},:;\"”$_?!–—。]|\*\*|\*(?!\s+[a-z])|\.(?!\s*[A-Z]\.|\s+[a-z]|\w)|'(?!\w)|\s[-(]|"
    r"\s(?:because|since)\b))"
)
"""What follows a letter that is an answer. `A dog`, `A-level`, and `C. elegans` begin with no such letter."""
LETTER_NEXT = re.compile(
    rf"{OPENING}{OPTION}{OPENING}(?:(?<=[(\[])([A-Z])\s*(?=[)\]])|([A-Z]){AFTER_LETTER})|"
    rf"{OPENING}{OPTION}[(\[]([a-z])[)\]]|{OPENING}([a-z])\)"
)
ANOTHER = re.compile(
    r"[)\]\s\"'”*,]*(?:or|and|and/or|/|,|&)\s*(?:(?:possibly|maybe|perhaps|even|rather|also|option|choice)\s+)*"
    r"[\s(\[\"'“*]*([A-Z])(?:[)\]]|(?![A-Za-z'’]))"
)
"""A second letter in a conclusion: `(A) or (B)`."""
BRACKETED = re.compile(r"(?<![\w'’\\])[(\[]\s*(?:([A-Z])|(?<![^\n][(\[])([a-z]))\s*[)\]](?!\s*\d)")
"""A letter in brackets. `P(B)` has none, and a small one counts only where a line begins: `Copyright (c)`."""
ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
LISTED = re.compile(r"[\s*_\"'“]*([A-Z])(?:\)|\.(?!\s+[a-z]|\s*[A-Z]\.))(?:\s|\*|$)|[\s*_\"'“]*([a-z])\)(?:\s|\*|$)")
SENTENCE_END = re.compile(r"[.!?](?=\s)(?!\s+[*_]*[(\[])|\n(?!\s*[*_-]*\s*[(\[]?[A-Za-z][)\].])")
"""The end of a sentence. Choices that are listed after one, in brackets, belong to it."""


def letters_after_mark(text: str) -> list[str]:
    """The letter or letters of the last conclusion: `The answer is (B)`. An empty text, which is no answer, if the
    text takes it back or names another letter in the same sentence; nothing if no letter follows."""
    for mark in marks_in(text)[-1:]:
        if found := LETTER_NEXT.match(text, mark.end()):
            letters = [group_of(found)]
            if REJECTED.match(text, found.end()) or doubted(text, mark):
                return [""]
            end = SENTENCE_END.search(text, found.end())
            rest = text[found.end() : end.start() if end else len(text)]
            if set(bracketed_letters(rest)) - {letters[0].upper()}:
                return [""]
            while other := ANOTHER.match(text, found.end()):
                letters.append(other[1])
                found = other
            return letters
    return []


def lone_letters(text: str) -> list[str]:
    """The letters in brackets that a text does not reject; without any, the letter that is all of the text, or that
    its first or last line begins with: `B. False`. Only what follows the last conclusion counts."""
    marks, text = marks_in(text), concluding_text(text)
    letters = bracketed_letters(text)
    if letters or BRACKETED.search(text):
        return letters
    lines = [line for line in text.splitlines() if line.strip()]
    if not marks:
        for line in dict.fromkeys([*lines[:1], *lines[-1:]]):
            if found := ALONE.fullmatch(line) or LISTED.match(line):
                letters.append(group_of(found))
    return letters


def bracketed_letters(text: str) -> list[str]:
    """The letters in brackets that a text does not reject, as capitals."""
    return [
        group_of(mark).upper()
        for mark in BRACKETED.finditer(text)
        if not rejected_before(text[max(0, mark.start() - 150) : mark.start()])
        and not REJECTED.match(text, mark.end())
        and not re.search(r"copyright\s*$", text[max(0, mark.start() - 12) : mark.start()], re.IGNORECASE)
    ]


def group_of(found: "re.Match[str]") -> str:
    return next(group for group in found.groups() if group)


def concluding_text(text: str) -> str:
    """What follows the last conclusion, or nothing if the text does not share it; all of the text without any."""
    marks = marks_in(text)
    return "" if marks and doubted(text, marks[-1]) else concluding(text)


# ------------------------------------------------------------------------------------------------- texts of the choices

COMMON = frozenset(
    (
        *("true", "false", "yes", "no", "maybe", "correct", "incorrect"),
        *("right", "wrong", "agree", "disagree", "neutral", "entailment", "contradiction"),
        *("positive", "negative", "valid", "invalid", "possible", "impossible", "both"),
        *("neither", "none", "all", "unknown"),
    )
)
"""Choices that also occur where they are no answer (`There is no doubt`)."""
HEDGE = re.compile(
    r"\b(?:not|cannot|never|neither|nor|no longer|hardly|unlikely|impossible|far from|if|but|though|although|however|"
    r"unless|whether|would be|could|might|may|partly|partially|almost|nearly|half|except|disagree|inaccurate|doubt\w*|"
    r"some|sometimes|people|many|suppose|assum\w+|incorrect|wrong|myth|misleading|true|false|yes|no|either|or|"
    r"unless|until|only|technically|mostly|largely|depends|supposed)\b|n['’]t\b|\?",
    re.IGNORECASE,
)
"""Words in a sentence that make a common word in it no plain answer."""
TURNED = re.compile(r"\b(?:but|however|yet|wait|actually|disagree|myth|although|though|nevertheless)\b", re.IGNORECASE)
SUBJECT = (
    r"(?:(?:that|this|it|which|(?:the|this|that)\s+(?:\w+\s+)?(?:statement|claim|answer|sentence|assertion|"
    r"proposition|hypothesis|premise|question|response))\s+(?:is|are|must be|has to be)|(?:it|that)['’]s|"
    r"i\s+(?:would\s+)?(?:say|think|guess|believe|choose)(?:\s+it(?:\s+is|['’]s))?|answer(?:\s+is|\s*:)|[:=])"
)
PLAIN_CLAUSE = (
    r"(?:^|,|\b(?:so|thus|therefore|hence|that|then)\b)\s*{subject}\s+(?:(?:therefore|thus|clearly|definitely|indeed|"
    r"certainly|simply|also)\s+)?({choice})$"
)
TOKEN = re.compile(
    r"(?:(?<![\w)%])[-+−–]\s?(?=[$€£¥]?\.?\d))?[$€£¥]?(?:\.(?=\d))?\w+(?:(?:[.,'’/-]|\^[-+−]?)\w+)*(?:(?<=\d)\s?%)?"
    r"|[^\w\s]"
)
"""A word, a sign, or a number with its minus, point, power and percent sign."""
GOES_ON = re.compile(r" (?:hundred|thousand|million|billion|dozen|percent|[-+*/=^×÷:]|[-+]?\d\S*) ")
"""What follows a number that is only a part of one: `3 hundred`, or `3 + 2`."""


def named_choices(text: str, choices: Sequence[str]) -> list[str]:
    """The letters of the choices whose texts occur and are not rejected. One inside of another does not count. Only
    what follows the last conclusion counts. A choice such as `True` has to be a plain statement: `It is true.`"""
    text = concluding_text(text)
    wanted = {letter: words_of(choice) for letter, choice in zip(LETTERS, choices)}
    if wanted and all(words in COMMON for words in wanted.values()):
        return plain_statements(text, wanted)
    words = f" {spaced(LIST_NUMBER.sub(' ', text) if LIST_NUMBER.sub('', text).strip() else text)} "
    places = [
        (found.start() + 1, found.start() + 1 + len(one), letter)
        for letter, one in wanted.items()
        if one
        for found in re.finditer(rf"(?= {re.escape(one)} )", words)
    ]
    letters = []
    for start, end, letter in places:
        inside = any(a <= start and end <= b and (a, b) != (start, end) for a, b, _ in places)
        if not inside and is_given(words, start, end) and (wanted[letter] not in COMMON or end >= len(words) - 3):
            letters.append(letter)
    return letters


def is_given(words: str, start: int, end: int) -> bool:
    """Whether a text gives the choice at a place: it does not reject it, and it is no part of a number."""
    part = words[start:end][-1].isdigit() and GOES_ON.match(words, end)
    return not part and not rejected_before(words[max(0, start - 150) : start]) and not REJECTED.match(words, end)


def plain_statements(text: str, wanted: dict[str, str]) -> list[str]:
    """The letters of common words that are a text's first word (`Yes, it is.`), or all that its first or last sentence
    states (`It is true.`). A sentence with a doubt or with another of the choices states nothing."""
    sentences = [one for one in re.split(r"(?<=[.!?])[\s\"'”*)]+|\n+", text) if re.search(r"\w", one)]
    letters = []
    for place in dict.fromkeys([0, len(sentences) - 1]) if sentences else ():
        sentence = " ".join(re.sub(r"[*_\"'“”(){}\[\]]+(?!\w)|(?<!\w)[*_\"'“”(){}\[\]]+", "", sentences[place]).split())
        after = " ".join(sentences[place + 1 :])
        letters += [
            letter
            for letter, word in wanted.items()
            if word and stated(sentence, word, first=place == 0) and not TURNED.search(after)
        ]
    return [] if letters and RETRACTED.search(text) and not RETRACTED.match(text) else letters


def stated(sentence: str, word: str, *, first: bool) -> bool:
    """Whether a sentence states a word and nothing that limits it."""
    bare = sentence.strip().rstrip(".!, ")
    choice = re.escape(word)
    found = re.search(PLAIN_CLAUSE.format(subject=SUBJECT, choice=choice), bare, re.IGNORECASE)
    if first and not found:
        found = re.match(rf"[\s:]*({choice})(?=\s*(?:$|[.,!:;–—])|\s+(?:because|since|as)\b)", bare, re.IGNORECASE)
        if found and re.match(r"yes|no\b", word):
            rest = bare[found.end() :]
            return not re.search(r"\b(?:but|or|however|if|unless|yes|no|and no)\b|\?", rest, re.IGNORECASE)
    if found is None or "?" in sentence:
        return False
    return not HEDGE.search(f"{bare[: found.start(1)]} {bare[found.end(1) :]}")


def words_of(choice: str) -> str:
    """A choice as it is looked for in the words of a text."""
    return re.sub(r"^(?:[\"'“(*] )+|(?: [\"'”)*.!?])+$", "", spaced(plain(choice)))


def spaced(text: str) -> str:
    """The words, the numbers and the signs of a text in small letters, with single spaces between them. Words and
    numbers keep the punctuation inside of them (`don't`, `3.5`, `-3`, `50%`, `10^2`)."""
    tokens = (re.sub(r"\s", "", token) for token in TOKEN.findall(text.casefold()))
    return " ".join(re.sub(r"^[−–]", "-", token) for token in tokens)
