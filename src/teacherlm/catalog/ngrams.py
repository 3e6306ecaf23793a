"""Hashes of words and of n-grams. Numbers are compared, counted and looked up faster than texts."""

import re
from functools import cache

import numpy as np
from xxhash import xxh3_64_intdigest

WORD = re.compile(r"\w+")
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
INVERSE = pow(BASE, -1, 2**64)


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation, for comparing texts."""
    return WORD.findall(text.lower())


def word_hashes(words: list[str]) -> np.ndarray:
    """A hash of each word, uint64, which is the same in every process."""
    return np.fromiter(map(xxh3_64_intdigest, map(str.encode, words)), np.uint64, len(words))


def ngram_hashes(hashes_W: np.ndarray, *lengths: int) -> np.ndarray:
    """The hashes of all n-grams of W words, uint64: for each n in turn, W - n + 1 hashes in the words' order.

    The hash is a polynomial of the words' hashes, computed from differences of prefix sums in a time independent of n.
    """
    size = 1 << len(hashes_W).bit_length()
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes_W * powers(BASE, size)[: len(hashes_W)])])
    down = powers(INVERSE, size)
    found = [(sums[n:] - sums[:-n]) * down[: len(sums) - n] for n in lengths if len(sums) > n]
    return np.concatenate(found) if found else np.empty(0, np.uint64)


@cache
def powers(base: int, length: int) -> np.ndarray:
    """base**0, base**1, ... modulo 2**64."""
    return np.concatenate([np.ones(1, np.uint64), np.cumprod(np.full(length - 1, base, np.uint64))])
