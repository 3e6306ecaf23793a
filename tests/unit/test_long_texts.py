"""The time for a text is linear in its length, for any content, and not quadratic."""

import random
from itertools import pairwise

import pytest
from support.bounded import bounded

from teacherlm.catalog.ngrams import word_hashes, words_of
from teacherlm.catalog.overlaps import TestSplit
from teacherlm.catalog.prompts import ANSWER_MARK, LETTERS, split_question


def letters_by_search(question: str, start: int) -> list[int]:
    """The positions of ` (A) `, ` (B) `, ... from `start` on, each found by a new search: slow but simple."""
    row: list[int] = []
    for letter in LETTERS:
        start = question.find(f" ({letter}) ", start)
        if start < 0:
            break
        row.append(start)
        start += 4
    return row


def taken_apart_slowly(question: str) -> tuple[str, tuple[str, ...]]:
    starts = []
    place = question.find(" (A) ")
    while place >= 0:
        starts.append(place)
        place = question.find(" (A) ", place + 5)
    row = max(reversed([letters_by_search(question, start) for start in starts]), key=len, default=[])
    if len(row) < 2:
        return question, ()
    spans = pairwise([*row, len(question)])
    return question[: row[0]], tuple(question[start + 5 : end] for start, end in spans)


def test_any_text_is_taken_apart_as_by_a_plain_search() -> None:
    draw = random.Random(0)
    pieces = [*(f" ({letter}) " for letter in "AAABBCDZ"), " (A)", "(B) ", "(C)", " ", "x", "(A) ", "word"]
    several = 0
    for _ in range(20_000):
        question = "".join(draw.choices(pieces, k=draw.randint(1, 14)))
        expected = taken_apart_slowly(question)
        assert split_question(question) == expected, question
        assert split_question(f"Q: {question}{ANSWER_MARK}B).") == expected, question
        several += len(expected[1]) > 2
    assert several > 1000


@pytest.mark.parametrize("piece", [" (A) ", " (A)", " (A) (B) ", " (Z) (Y) (A) ", ANSWER_MARK, "Q: "])
def test_a_million_letters_in_brackets(piece: str) -> None:
    """160,000 characters of ` (A) ` once took 3.2 seconds, and twice the characters took four times as long."""
    code = "import sys; from teacherlm.catalog.prompts import split_question\n"
    code += "split_question('Q: ' + sys.argv[1] * (1_500_000 // len(sys.argv[1])))"
    assert bounded(["-c", code, piece], 30).returncode == 0


def overlaps(questions: list[list[str]], text: str) -> list[tuple[int, str]]:
    words = words_of(text)
    return TestSplit(questions).overlaps(words, word_hashes(words))


def test_a_long_text_and_the_same_text_as_a_question() -> None:
    """16,000 words once took 24 seconds, because the question was searched once for each of its words."""
    code = "import sys; from teacherlm.catalog import ngrams, overlaps\n"
    code += "text = ' '.join(f'word{number}' for number in range(100_000))\n"
    code += "split = overlaps.TestSplit([[text], ['a question that has no such words'], [text + ' more', text]])\n"
    code += "words = ngrams.words_of(text)\n"
    code += "found = split.overlaps(words, ngrams.word_hashes(words))\n"
    code += "print([(number, len(piece.split())) for number, piece in found])"
    done = bounded(["-c", code], 60)
    assert done.stdout == "[(0, 13), (2, 13)]\n", done.stderr
    words = [f"word{number}" for number in range(400)]
    asked = [[" ".join(words[:200])], [" ".join(words[100:300])]]
    assert overlaps(asked, " ".join(words[:250])) == [(0, " ".join(words[:13])), (1, " ".join(words[100:113]))]
