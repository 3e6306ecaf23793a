"""Which training texts hold a piece of the test split: 13 words in a row of a question, or all of a shorter one.

The test of GPT-3's appendix C (Brown et al. 2020, arXiv 2005.14165), on words in lower case without punctuation. What
is looked for is what the sample itself brings to its question, not what the benchmark's template says around it.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.core.saved_datasets import load_saved
from teacherlm.dataset.ngrams import ngram_hashes, word_hashes, words_of

LONGEST, SHORTEST = 13, 5
"""Words of a piece; a question of fewer than the second is not looked for, as everybody says such things."""
COMMON = 3
"""A piece that more test questions than this have in common says nothing about one of them."""
MOST_FOUND = 5
"""So many overlaps of a text are listed."""


class TestSplit:
    """The pieces of the test questions, for looking up.

    Attributes:
        size: the number of questions.
        unchecked: how many of them have no passage that is long enough to be looked for.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, questions: Iterable[list[str]]):
        """questions: of each the passages that it is made of."""
        found: list[tuple[int, int]] = []  # (hash of a piece, the passage's number)
        self.passages: list[tuple[int, int, list[str]]] = []  # (question, words of a piece, words)
        self.size = self.unchecked = 0
        for question in questions:
            long_enough = [words for words in map(words_of, question) if len(words) >= SHORTEST]
            for words in long_enough:
                n = min(LONGEST, len(words))
                pieces = set(ngram_hashes(word_hashes(words), n).tolist())
                found += [(piece, len(self.passages)) for piece in pieces]
                self.passages.append((self.size, n, words))
            self.unchecked += not long_enough
            self.size += 1
        of_questions = {(piece, self.passages[passage][0]) for piece, passage in found}
        shared = Counter(piece for piece, _ in of_questions)
        kept = sorted(pair for pair in found if shared[pair[0]] <= COMMON)
        self.pieces_P = np.array([piece for piece, _ in kept], np.uint64)
        self.passages_P = [passage for _, passage in kept]
        self.lengths = sorted({self.passages[passage][1] for passage in self.passages_P})

    def overlaps(self, words: list[str], hashes_W: np.ndarray) -> list[tuple[int, str]]:
        """(number of the test question, the words in common) of a text, the first few; each question once."""
        if not self.lengths:
            return []
        own = ngram_hashes(hashes_W, *self.lengths)
        at = np.searchsorted(self.pieces_P, own)
        at[at == len(self.pieces_P)] = 0
        found: dict[int, str] = {}
        for place in np.flatnonzero(self.pieces_P[at] == own):
            piece = self.piece_at(words, int(place))
            for question in self.questions_with(int(at[place]), piece, found):
                found[question] = " ".join(piece)
            if len(found) >= MOST_FOUND:
                break
        return sorted(found.items())

    def piece_at(self, words: list[str], place: int) -> list[str]:
        """The words of the n-gram at a place of the hashes, in which the lengths follow one another."""
        for n in self.lengths:
            count = max(0, len(words) - n + 1)
            if place < count:
                return words[place : place + n]
            place -= count
        raise IndexError(place)

    def questions_with(self, at: int, piece: list[str], known: Container[int]) -> Iterator[int]:
        """The test questions whose piece is this, of those from a place of the table on with the same number.

        Args:
            known: questions that are passed over. Each is looked through once only: a text and a question may have
                thousands of pieces in common, and looking through the question takes as long as it is.
        """
        while True:
            question, n, words = self.passages[self.passages_P[at]]
            if question not in known and n == len(piece) and contains(words, piece):
                yield question
            at += 1
            if at == len(self.pieces_P) or self.pieces_P[at] != self.pieces_P[at - 1]:
                return


def contains(words: list[str], piece: list[str]) -> bool:
    """Whether the very words stand there, not only their numbers."""
    return any(words[start : start + len(piece)] == piece for start in range(len(words) - len(piece) + 1))


def read_test_split(benchmark: Benchmark, folder: Path) -> TestSplit:
    """The test split in a folder as data_prepare.py writes it."""
    return TestSplit(passages(benchmark, sample) for sample in load_saved(folder))


def passages(benchmark: Benchmark, sample: dict[str, Any]) -> list[str]:
    """The texts of the fields that the question's template reads (see Benchmark.test_sample for their names)."""
    values = (sample.get(f"origin_{name}", sample.get(name)) for name in benchmark.question_fields)
    return [text for value in values for text in texts_in(value)]


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)
