"""Search over compressed vectors: FAISS, with the kinds of index and the settings that the reference has."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacherlm.core.errors import UserError

KINDS = ("flat", "ivfflat", "ivfsq", "pq", "ivfpq")
BITS = 8
"""Bits of a byte of a code: a subquantizer has 256 centroids."""
TRAINING_VECTORS = 256
"""Vectors a list or a centroid to learn from, at most; what FAISS itself takes of more."""


class CompressedVectors:
    """A FAISS index of one worker's share of the passages."""

    def __init__(self, index: Any, first_row: int):
        self.index = index
        self.first_row = first_row

    def __len__(self) -> int:
        return self.index.ntotal

    def search(self, queries_QD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best passages of each query as the index sees them: (scores (Q, K), rows (Q, K)), K = min(k, n).

        An index of lists may find fewer than k; those places have the score -inf and the row -1.
        """
        queries = np.ascontiguousarray(queries_QD.float().cpu().numpy())
        scores, columns = self.index.search(queries, min(k, len(self)))
        scores, columns = torch.from_numpy(scores), torch.from_numpy(columns)
        return scores.masked_fill(columns < 0, -torch.inf), torch.where(columns < 0, columns, columns + self.first_row)


def train(kind: str, code_size: int | None, count: int, sample_ND: np.ndarray) -> Any:
    """An empty index that has learned its centroids from a sample of the vectors.

    Lists are sqrt(count) and all of them are searched, as in the reference: the gain is memory, not time.

    Args:
        kind: one of KINDS.
        code_size: bytes of a vector's code, for pq and ivfpq.
        count: vectors that the whole index will have.
        sample_ND: float32.

    Raises:
        UserError: the settings do not fit the vectors.
    """
    import faiss

    dimension = sample_ND.shape[1]
    needs_code = kind in ("pq", "ivfpq")
    if needs_code and (not code_size or dimension % code_size):
        raise UserError(
            f"--faiss_index_type {kind} needs --faiss_code_size, bytes of a code that divide the dimension {dimension}"
        )
    centroids = 2**BITS if needs_code else 1
    if len(sample_ND) < centroids:
        raise UserError(
            f"--faiss_index_type {kind} learns {centroids} centroids; {len(sample_ND)} passages are too few"
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
    """Refuse a FAISS file of whole vectors one of which has a NaN or an infinity: it would come first for every query.

    Codes are always numbers, and an index of lists leaves such a vector out of them.

    Args:
        index: as it was read from the file.
        rows: vectors that are looked at together.
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
    """Refuse a FAISS file whose lists name rows that it does not have: they would be found, and have no passage.

    Args:
        index: as it was read from the file.
    """
    import faiss

    lists = index.invlists if isinstance(index, faiss.IndexIVF) else None
    for number in range(lists.nlist if lists is not None else 0):
        size = lists.list_size(number)
        rows = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)
        if size and not 0 <= rows.min() <= rows.max() < index.ntotal:
            raise UserError(f"{file}: its list {number} names rows that it does not have; make or copy the index again")


def sample_size(kind: str, count: int) -> int:
    """How many of `count` vectors to learn from."""
    lists = math.isqrt(count) if kind.startswith("ivf") else 0
    return min(count, TRAINING_VECTORS * max(lists, 2**BITS))


def add(index: Any, segments: Sequence[torch.Tensor], rows: int = 65_536) -> None:
    """Add vectors to an index, some at a time in float32."""
    for segment in segments:
        for start in range(0, len(segment), rows):
            index.add(np.ascontiguousarray(segment[start : start + rows].float().cpu().numpy()))
