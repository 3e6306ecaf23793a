"""Finds training texts that contain a piece of the test split: 13 consecutive words of a question, or a short question.

This is the test in GPT-3's appendix C (Brown et al. 2020, arXiv 2005.14165), on words in lower case without
punctuation. The pieces are from the sample's fields in the question, not from the text of the benchmark's template.
"""

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.catalog.ngrams import ngram_hashes, word_hashes, words_of
from teacherlm.core.saved_datasets import load_saved

LONGEST, SHORTEST = 13, 5
"""Maximum and minimum number of words of a piece. Passages of fewer words are too common to check."""
COMMON = 3
"""Maximum number of test questions with the same piece. A piece in more questions is ignored."""
MOST_FOUND = 5
"""Number of overlaps of a text after which the search ends."""


class TestSplit:
    """The pieces of the test questions, in a table for lookups.

    Attributes:
        size: the number of questions.
        unchecked: the number of questions without a passage that is long enough to check.
    """

    __test__ = False  # pytest must not collect this class

    def __init__(self, questions: Iterable[list[str]]):
        """questions: the passages of each question."""
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
        """(number of a test question, the common words) for the first few overlaps of a text, each question once."""
        if not self.lengths:
            return []
        hashes = ngram_hashes(hashes_W, *self.lengths)
        at = np.searchsorted(self.pieces_P, hashes)
        at[at == len(self.pieces_P)] = 0
        found: dict[int, str] = {}
        for place in np.flatnonzero(self.pieces_P[at] == hashes):
            piece = self.piece_at(words, int(place))
            for question in self.questions_with(int(at[place]), piece, found):
                found[question] = " ".join(piece)
            if len(found) >= MOST_FOUND:
                break
        return sorted(found.items())

    def piece_at(self, words: list[str], place: int) -> list[str]:
        """The words of the n-gram at an index of the hashes, which are ordered by the n-grams' length."""
        for n in self.lengths:
            count = max(0, len(words) - n + 1)
            if place < count:
                return words[place : place + n]
            place -= count
        raise IndexError(place)

    def questions_with(self, at: int, piece: list[str], known: Container[int]) -> Iterator[int]:
        """The test questions that contain a piece, among the table's entries from an index on with the same hash.

        Args:
            known: questions to skip. Each question is searched only once, because it may have thousands of pieces in
                common with a text, and a search takes time proportional to the question's length.
        """
        while True:
            question, n, words = self.passages[self.passages_P[at]]
            if question not in known and n == len(piece) and contains(words, piece):
                yield question
            at += 1
            if at == len(self.pieces_P) or self.pieces_P[at] != self.pieces_P[at - 1]:
                return


def contains(words: list[str], piece: list[str]) -> bool:
    """Whether the words contain the piece. Equal hashes alone do not prove it."""
    return any(words[start : start + len(piece)] == piece for start in range(len(words) - len(piece) + 1))


def read_test_split(benchmark: Benchmark, folder: Path) -> TestSplit:
    """The test split in a folder that data_prepare.py wrote."""
    return TestSplit(passages(benchmark, sample) for sample in load_saved(folder))


def passages(benchmark: Benchmark, sample: dict[str, Any]) -> list[str]:
    """The texts of the fields that the template `question` reads (see Benchmark.test_sample for their names)."""
    values = (sample.get(f"origin_{name}", sample.get(name)) for name in benchmark.question_fields)
    return [text for value in values for text in texts_in(value)]


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)
