"""The conclusion of a teacher's text, and the text before it."""

import re
from collections.abc import Iterator
from dataclasses import replace

from teacherlm.catalog.answer_marks import marks_in, own_text
from teacherlm.catalog.answers import DEFAULT_RULES, RULES, Asked, places_of, read_answer

CONCLUDING = ("conclusion", "concluded_number", "concluded_text")
"""The rules that find an answer in a sentence of its own: `The answer is (B)`."""
MOST_PLACES = 20
"""Maximum number of places, from a text's end, at which its conclusion is looked for."""
SENTENCE_END = re.compile(r"[.!?][)\"'”]*(?=\s)|\n")


def conclusion(text: str, asked: Asked) -> tuple[str, str] | None:
    """The text before its conclusion, and the answer that it gives (see `read_answer`); None if it gives none.

    Without rules of the benchmark, only a sentence such as `The answer is (B)` counts. The last one decides. If the
    benchmark has rules, and one that looks for no such sentence finds the answer, all of the text is kept.

    Raises:
        UserError: a pattern takes too long.
    """
    text = own_text(text)
    rules = asked.rules or tuple(rule for rule in DEFAULT_RULES[asked.kind] if rule in CONCLUDING)
    answer = read_answer(text, replace(asked, rules=rules))
    if answer is None:
        return None
    of_sentences = tuple(rule for rule in rules if rule in CONCLUDING or rule not in RULES)
    if of_sentences:
        for place in places(text, of_sentences, asked.source):
            if read_answer(text[place:], replace(asked, rules=of_sentences)) == answer:
                return text[: sentence_start(text, place)].rstrip(), answer
    return text.rstrip(), answer


def places(text: str, rules: tuple[str, ...], source: str) -> Iterator[int]:
    """Where a conclusion may begin, from the end of the text on."""
    found = {mark.start() for mark in marks_in(text)} if set(rules) & set(CONCLUDING) else set()
    for rule in rules:
        found |= set() if rule in RULES else set(places_of(rule, text, source))
    yield from sorted(found, reverse=True)[:MOST_PLACES]


def sentence_start(text: str, place: int) -> int:
    """The end of the last sentence before a place."""
    ends = [found.end() for found in SENTENCE_END.finditer(text, 0, place)]
    return ends[-1] if ends else 0
