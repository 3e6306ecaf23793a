"""Finds texts that are nearly equal to an earlier one, with MinHash (Broder 1997) and banding.

A text's signature is 64 minima of its hashed word triples. The fraction of equal minima estimates the Jaccard
similarity of two texts' triples. A text whose four minima in one of the 16 bands equal those of other texts is compared
with the first of them. The signatures are in a file; memory is about 30 bytes per text.
"""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from teacherlm.catalog.ngrams import ngram_hashes

SHINGLE = 3
MINIMA, BANDS = 64, 16
ALIKE = 0.8
"""Minimum fraction of equal minima of two nearly equal texts. Above it, a pair shares a band with a probability of
99.9 %."""
AT_ONCE = 4096
"""Maximum number of shingles or signatures in memory at the same time."""

DRAWN = np.random.default_rng(0)
FACTORS_M1 = DRAWN.integers(1, 2**63, (MINIMA, 1), np.uint64) | np.uint64(1)
SHIFTS_M1 = DRAWN.integers(0, 2**63, (MINIMA, 1), np.uint64)


def signature(hashes_W: np.ndarray) -> np.ndarray:
    """The minima of a text's shingles, uint32. If the text is shorter than a shingle, they are those of its words."""
    shingles_S = ngram_hashes(hashes_W, SHINGLE) if len(hashes_W) >= SHINGLE else hashes_W
    minima_M = np.full(MINIMA, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(shingles_S), AT_ONCE):
        mixed_MS = (FACTORS_M1 * shingles_S[start : start + AT_ONCE] + SHIFTS_M1) >> np.uint64(32)
        minima_M = np.minimum(minima_M, mixed_MS.min(axis=1).astype(np.uint32))
    return minima_M


class Signatures:
    """The signatures of N texts, in the order in which they are added."""

    def __init__(self, folder: Path):
        self.file = tempfile.TemporaryFile(dir=folder)
        self.count = 0
        self.empty = bytearray()

    def add(self, hashes_W: np.ndarray) -> None:
        self.file.write(signature(hashes_W).tobytes())
        self.empty.append(not len(hashes_W))
        self.count += 1

    def duplicates(self) -> np.ndarray:
        """For each text, the number of an earlier one that is nearly equal, or -1 if there is none; int64 (N)."""
        self.file.flush()
        found_N = np.full(self.count, -1, np.int64)
        for band in range(BANDS):
            keys_N = self.keys(band)
            order_N = np.argsort(keys_N, kind="stable")
            sorted_N = keys_N[order_N]
            candidates = np.flatnonzero(sorted_N[1:] == sorted_N[:-1]) + 1
            for start in range(0, len(candidates), AT_ONCE):
                places = candidates[start : start + AT_ONCE]
                later, earlier = order_N[places], order_N[np.searchsorted(sorted_N, sorted_N[places])]
                alike = (self.read(later) == self.read(earlier)).mean(axis=1) >= ALIKE
                new = alike & (found_N[later] < 0)
                found_N[later[new]] = earlier[new]
        found_N[np.frombuffer(self.empty, np.uint8) == 1] = -1
        return found_N

    def keys(self, band: int) -> np.ndarray:
        """For each text, a hash of its minima in a band, uint64 (N)."""
        rows = MINIMA // BANDS
        keys_N = np.empty(self.count, np.uint64)
        for start in range(0, self.count, AT_ONCE):
            some = self.read([start], AT_ONCE)
            keys_N[start : start + AT_ONCE] = row_hashes(some[:, band * rows : (band + 1) * rows])
        return keys_N

    def read(self, starts: Iterable[int], count: int = 1) -> np.ndarray:
        """`count` signatures from each start on, uint32. They are not memory-mapped: mapped pages count as memory."""
        size = MINIMA * np.dtype(np.uint32).itemsize
        parts = [os.pread(self.file.fileno(), count * size, int(start) * size) for start in starts]
        return np.frombuffer(b"".join(parts), np.uint32).reshape(-1, MINIMA)


def row_hashes(rows_NR: np.ndarray) -> np.ndarray:
    """A hash of each row, uint64."""
    keys_N = np.zeros(len(rows_NR), np.uint64)
    for column_N in rows_NR.T:
        keys_N = keys_N * FACTORS_M1[0] + column_N
    return keys_N
