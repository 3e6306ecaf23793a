"""Search over compressed vectors with FAISS, with the reference's kinds of index and settings."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacherlm.core.errors import UserError

KINDS = ("flat", "ivfflat", "ivfsq", "pq", "ivfpq")
BITS = 8
"""Number of bits per subquantizer, so that each has 256 centroids."""
TRAINING_VECTORS = 256
"""Maximum number of training vectors per list or centroid. If there are more, FAISS itself uses this many."""


class CompressedVectors:
    """A FAISS index over one worker's part of the passages."""

    def __init__(self, index: Any, first_row: int):
        self.index = index
        self.first_row = first_row

    def __len__(self) -> int:
        return self.index.ntotal

    def search(self, queries_QD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best passages of each query by the index: (scores (Q, K), rows (Q, K)), K = min(k, n).

        An index with lists may find fewer than k passages. The remaining places have the score -inf and the row -1.
        """
        queries = np.ascontiguousarray(queries_QD.float().cpu().numpy())
        scores, columns = self.index.search(queries, min(k, len(self)))
        scores, columns = torch.from_numpy(scores), torch.from_numpy(columns)
        return scores.masked_fill(columns < 0, -torch.inf), torch.where(columns < 0, columns, columns + self.first_row)


def train(kind: str, code_size: int | None, count: int, sample_ND: np.ndarray) -> Any:
    """An empty index whose centroids were learned from a sample of the vectors.

    As in the reference, there are sqrt(count) lists and all of them are searched, which saves memory but not time.

    Args:
        kind: one of KINDS.
        code_size: number of bytes per vector, for pq and ivfpq.
        count: number of vectors that the whole index will have.
        sample_ND: the sample of the vectors, float32.

    Raises:
        UserError: the settings do not fit the vectors.
    """
    import faiss

    dimension = sample_ND.shape[1]
    needs_code = kind in ("pq", "ivfpq")
    if needs_code and (not code_size or dimension % code_size):
        raise UserError(
            f"--faiss_index_type {kind} needs --faiss_code_size, a number of bytes that divides {dimension}, the "
            "dimension of the vectors"
        )
    centroids = 2**BITS if needs_code else 1
    if len(sample_ND) < centroids:
        raise UserError(
            f"--faiss_index_type {kind} learns {centroids} centroids and needs at least as many passages, found "
            f"{len(sample_ND)}"
        )
    lists = max(1, math.isqrt(count)) if kind.startswith("ivf") else 0
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexFlatIP(dimension)
    if kind == "pq":
        index = faiss.IndexPQ(dimension, code_size, BITS, metric)
    else:
        quantizer = faiss.IndexFlatIP(dimension)
        if kind == "ivfflat":
            index = faiss.IndexIVFFlat(quantizer, dimension, lists, metric)
        elif kind == "ivfsq":
            index = faiss.IndexIVFScalarQuantizer(quantizer, dimension, lists, faiss.ScalarQuantizer.QT_4bit, metric)
        else:
            index = faiss.IndexIVFPQ(quantizer, dimension, lists, code_size, BITS, metric)
        index.nprobe = lists
    index.train(sample_ND)
    return index


def require_finite_numbers(index: Any, file: Path, rows: int = 65_536) -> None:
    """Refuse a FAISS file of uncompressed vectors if one has a NaN or an infinity, which would be best for every query.

    Codes always stand for finite numbers, and an index with lists stores no such vector in its lists.

    Args:
        index: the index that was read from the file.
        rows: number of vectors that are checked together.
    """
    import faiss

    for start in range(0, index.ntotal if isinstance(index, faiss.IndexFlat) else 0, rows):
        vectors = index.reconstruct_n(start, min(rows, index.ntotal - start))
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise UserError(
                f"{file}: the vector of row {start + bad[0]} has numbers that are not finite (NaN or infinity); make "
                "the index again"
            )


def require_own_rows(index: Any, file: Path) -> None:
    """Refuse a FAISS file whose lists contain rows that do not exist: they would be found, but have no passage.

    Args:
        index: the index that was read from the file.
    """
    import faiss

    lists = index.invlists if isinstance(index, faiss.IndexIVF) else None
    for number in range(lists.nlist if lists is not None else 0):
        size = lists.list_size(number)
        rows = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)
        if size and not 0 <= rows.min() <= rows.max() < index.ntotal:
            raise UserError(f"{file}: its list {number} has rows that do not exist; make or copy the index again")


def sample_size(kind: str, count: int) -> int:
    """Number of training vectors for an index of `count` vectors."""
    lists = math.isqrt(count) if kind.startswith("ivf") else 0
    return min(count, TRAINING_VECTORS * max(lists, 2**BITS))


def add(index: Any, segments: Sequence[torch.Tensor], rows: int = 65_536) -> None:
    """Add vectors to an index, converting `rows` of them at a time to float32."""
    for segment in segments:
        for start in range(0, len(segment), rows):
            index.add(np.ascontiguousarray(segment[start : start + rows].float().cpu().numpy()))
