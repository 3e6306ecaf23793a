"""Exact search by inner product over vectors in half precision, in blocks: memory stays bounded."""

from collections.abc import Sequence

import torch

from teacherlm.runtime.compat.of_torch import linear

BLOCK_VALUES = {"cpu": 2**21, "cuda": 2**28}
"""Numbers of a block of vectors that is held in float32 at a time: on a CPU, what its caches hold."""
BLOCK_SCORES = {"cpu": 2**22, "cuda": 2**28}
"""Scores that are held at a time."""
FEW = 8
"""Queries below which one operation a block counts: the best are then looked for in many blocks at once. From here
on a CPU oneDNN's product is quicker than torch's own (MKL's)."""
CELL = 32
"""Scores whose greatest is looked at first: few cells have any among a query's best."""


class FlatVectors:
    """Vectors of one worker's share of the passages.

    Args:
        segments: float16 (n, D) each, in the order of the rows, in memory or memory-mapped.
        first_row: of the first segment.
    """

    def __init__(self, segments: Sequence[torch.Tensor], first_row: int):
        self.segments = list(segments)
        self.first_row = first_row
        self.floats = torch.empty(0)
        """A block's vectors in float32; kept, since to get memory anew can take longer than a search."""

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    def search(self, queries_QD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best passages of each query: (scores (Q, K), rows (Q, K)), K = min(k, n); of equal ones the first.

        Scores are inner products in float32 of the stored numbers.
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
    """Vectors of a block."""
    kind, dimension = segment.device.type, segment.shape[1]
    size = max(k, BLOCK_VALUES[kind] // dimension // CELL * CELL)
    return max(CELL, min(size, BLOCK_SCORES[kind] // max(1, queries) // CELL * CELL))


def products(queries_QD: torch.Tensor, halves_ND: torch.Tensor, floats: torch.Tensor) -> torch.Tensor:
    """Inner products (Q, N), by as many vectors at a time as `floats` holds."""
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
    """The best k of scores that come block by block.

    A block's scores count only above the k-th best that is known of their query. Those that do are put aside, and are
    sorted in when the rows seen have doubled since the last time: then about k of each query are to be sorted, and the
    sorting is done only log(n) times.
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
        """Keep the k best of each query, sorted; of equal scores the lower row."""
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
    """(queries, columns) of the scores above the bound, by query, then column. Looked for in cells first."""
    queries, columns = scores_QN.shape
    cells = columns // CELL
    if cells < 2:
        return torch.nonzero(scores_QN > bound_Q1, as_tuple=True)
    # A cell is every cells-th column: then the maximum runs over whole vectors.
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
"""The bits of a float16's exponent, all of which a NaN or an infinity has."""


def first_bad_row(halves_ND: torch.Tensor) -> int | None:
    """The first row of float16 vectors that has a NaN or an infinity; None where all numbers are finite."""
    size = max(1, BLOCK_VALUES[halves_ND.device.type] // halves_ND.shape[1])
    for start in range(0, len(halves_ND), size):
        exponents_ND = halves_ND[start : start + size].view(torch.int16) & EXPONENT
        if exponents_ND.amax() == EXPONENT:
            return start + int((exponents_ND == EXPONENT).any(dim=1).nonzero()[0])
    return None


def stable_top_k(scores_QN: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """torch.topk, but of equal scores at the k-th place the first columns."""
    scores_QK, columns_QK = torch.topk(scores_QN, k, dim=1)
    tied = (scores_QN >= scores_QK[:, -1:]).sum(dim=1) > k
    for query in torch.nonzero(tied).flatten().tolist():
        columns = torch.sort(scores_QN[query], stable=True, descending=True).indices[:k]
        scores_QK[query], columns_QK[query] = scores_QN[query][columns], columns
    return scores_QK, columns_QK
