"""Exact search by inner product over vectors in half precision. It works in blocks, so that memory is bounded."""

from collections.abc import Sequence

import torch

from teacherlm.runtime.compat.of_torch import linear

BLOCK_VALUES = {"cpu": 2**21, "cuda": 2**28}
"""Number of values in a block of vectors that are converted to float32 at a time. On a CPU a block fits into its
caches."""
BLOCK_SCORES = {"cpu": 2**22, "cuda": 2**28}
"""Maximum number of scores that are held at a time."""
FEW = 8
"""With fewer queries than this, the cost per operation matters, so the best scores are searched in many blocks at once.
From this number on, oneDNN's product on a CPU is faster than torch's (MKL's)."""
CELL = 32
"""Number of scores in a cell. The maxima of the cells are compared first, because few cells contain a score that is
among the best of a query."""


class FlatVectors:
    """The vectors of one worker's part of the passages.

    Args:
        segments: tensors (n, D) in float16, in the order of the rows, in memory or memory-mapped.
        first_row: the row of the first vector.
    """

    def __init__(self, segments: Sequence[torch.Tensor], first_row: int):
        self.segments = list(segments)
        self.first_row = first_row
        self.floats = torch.empty(0)
        """A buffer for the vectors of a block in float32. It is kept, because allocating it is slow."""

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    def search(self, queries_QD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best passages of each query: (scores (Q, K), rows (Q, K)), K = min(k, n).

        Scores are inner products of the stored numbers in float32. Among equal scores, lower rows come first.
        """
        best = BestRows(len(queries_QD), min(k, len(self)), queries_QD.device)
        queries_QD = queries_QD.float().contiguous()
        row = self.first_row
        for segment in self.segments:
            size = block_rows(segment, len(queries_QD), k)
            most = BLOCK_SCORES[segment.device.type] // max(1, len(queries_QD))
            columns = size if len(queries_QD) >= FEW else max(size, most)
            if len(self.floats) != size * segment.shape[1]:
                self.floats = queries_QD.new_empty(size * segment.shape[1])
            for start in range(0, len(segment), columns):
                best.add(products(queries_QD, segment[start : start + columns], self.floats), row + start)
            row += len(segment)
        return best.result()


def block_rows(segment: torch.Tensor, queries: int, k: int) -> int:
    """Number of vectors in a block."""
    kind, dimension = segment.device.type, segment.shape[1]
    size = max(k, BLOCK_VALUES[kind] // dimension // CELL * CELL)
    return max(CELL, min(size, BLOCK_SCORES[kind] // max(1, queries) // CELL * CELL))


def products(queries_QD: torch.Tensor, halves_ND: torch.Tensor, floats: torch.Tensor) -> torch.Tensor:
    """Inner products (Q, N), computed for as many vectors at a time as the buffer `floats` holds."""
    onednn = halves_ND.device.type == "cpu" and torch.backends.mkldnn.is_available() and len(queries_QD) >= FEW
    found = []
    for part_ND in halves_ND.split(len(floats) // halves_ND.shape[1]):
        block_ND = floats[: part_ND.numel()].view(part_ND.shape).copy_(part_ND)
        if onednn:
            found.append(linear(queries_QD, block_ND))
        else:
            found.append(queries_QD @ block_ND.T)
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


class BestRows:
    """The k best of scores that arrive block by block.

    A score of a block counts only if it is above the k-th best score of its query so far. Scores that count are put
    aside, and they are sorted when the number of rows has doubled since the last sorting. So each sorting handles about
    k new scores per query, and there are only log(n) sortings.
    """

    def __init__(self, queries: int, k: int, device: torch.device):
        self.k = k
        self.bound_Q1 = torch.full((queries, 1), -torch.inf, device=device)
        self.queries = [torch.empty(0, dtype=torch.long, device=device)]
        self.scores = [torch.empty(0, device=device)]
        self.rows = [torch.empty(0, dtype=torch.long, device=device)]
        self.seen = self.sorted_at = 0

    def add(self, scores_QN: torch.Tensor, first_row: int) -> None:
        if self.seen == 0 and scores_QN.shape[1] > self.k:
            scores_QK, columns_QK = stable_top_k(scores_QN, self.k)
            query = torch.arange(len(scores_QN), device=scores_QN.device).repeat_interleave(self.k)
            self.put_aside(query, scores_QK.flatten(), first_row + columns_QK.flatten())
        else:
            query, column = above(scores_QN, self.bound_Q1)
            self.put_aside(query, scores_QN[query, column], first_row + column)
        self.seen += scores_QN.shape[1]
        if self.seen >= 2 * self.sorted_at:
            self.sort_in()

    def put_aside(self, query: torch.Tensor, scores: torch.Tensor, rows: torch.Tensor) -> None:
        self.queries.append(query)
        self.scores.append(scores)
        self.rows.append(rows)

    def sort_in(self) -> None:
        """Keep the k best scores of each query, sorted. Among equal scores, lower rows come first."""
        query, score, row = torch.cat(self.queries), torch.cat(self.scores), torch.cat(self.rows)
        order = torch.sort(row).indices
        order = order[torch.sort(score[order], stable=True, descending=True).indices]
        order = order[torch.sort(query[order], stable=True).indices]
        query, score, row = query[order], score[order], row[order]
        count_Q = torch.bincount(query, minlength=len(self.bound_Q1))
        place = torch.arange(len(query), device=query.device) - (count_Q.cumsum(0) - count_Q)[query]
        kept = place < self.k
        self.queries, self.scores, self.rows = [query[kept]], [score[kept]], [row[kept]]
        last = place == self.k - 1
        self.bound_Q1[query[last], 0] = score[last]
        self.sorted_at = self.seen

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.sort_in()
        shape = (len(self.bound_Q1), self.k)
        return self.scores[0].view(shape), self.rows[0].view(shape)


def above(scores_QN: torch.Tensor, bound_Q1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(queries, columns) of the scores above the bound. The maxima of cells are compared first."""
    queries, columns = scores_QN.shape
    cells = columns // CELL
    if cells < 2:
        return torch.nonzero(scores_QN > bound_Q1, as_tuple=True)
    # A cell consists of every `cells`-th column, so that the maximum is computed over whole vectors.
    greatest_QC = scores_QN[:, : cells * CELL].view(queries, CELL, cells).amax(dim=1)
    query, cell = torch.nonzero(greatest_QC > bound_Q1, as_tuple=True)
    column = cell[:, None] + torch.arange(CELL, device=cell.device) * cells
    hit, place = torch.nonzero(scores_QN[query[:, None], column] > bound_Q1[query], as_tuple=True)
    query, column = query[hit], column[hit, place]
    if cells * CELL < columns:
        rest_query, rest_column = torch.nonzero(scores_QN[:, cells * CELL :] > bound_Q1, as_tuple=True)
        query, column = torch.cat([query, rest_query]), torch.cat([column, rest_column + cells * CELL])
    return query, column


EXPONENT = 0x7C00
"""The exponent bits of a float16. All of them are set in a NaN or an infinity."""


def first_bad_row(halves_ND: torch.Tensor) -> int | None:
    """The first row of float16 vectors with a NaN or an infinity; None if all numbers are finite."""
    size = max(1, BLOCK_VALUES[halves_ND.device.type] // halves_ND.shape[1])
    for start in range(0, len(halves_ND), size):
        exponents_ND = halves_ND[start : start + size].view(torch.int16) & EXPONENT
        if exponents_ND.amax() == EXPONENT:
            return start + int((exponents_ND == EXPONENT).any(dim=1).nonzero()[0])
    return None


def stable_top_k(scores_QN: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Like torch.topk, but among scores equal to the k-th best, the first columns are chosen."""
    scores_QK, columns_QK = torch.topk(scores_QN, k, dim=1)
    tied = (scores_QN >= scores_QK[:, -1:]).sum(dim=1) > k
    for query in torch.nonzero(tied).flatten().tolist():
        columns = torch.sort(scores_QN[query], stable=True, descending=True).indices[:k]
        scores_QK[query], columns_QK[query] = scores_QN[query][columns], columns
    return scores_QK, columns_QK
