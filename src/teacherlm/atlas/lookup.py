"""Find passages for queries: embed the queries, search the index, optionally rerank, and look the passages up."""

from collections.abc import Sequence

import torch

from teacherlm.atlas.flags import AtlasFlags
from teacherlm.atlas.index import Index
from teacherlm.atlas.model import Model
from teacherlm.atlas.retriever import embed

QUERY_BATCH = 256
RERANKED = 64
"""Number of queries whose candidates are embedded together. A candidate of several queries is embedded once."""


@torch.no_grad()
def retrieve(
    flags: AtlasFlags, model: Model, index: Index, queries: Sequence[str], k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best passages for each of this worker's queries. All workers call this together.

    All queries are searched at once, so that each block of the index is read once for many queries.

    Returns:
        (scores (Q, K), rows (Q, K)), in the form of Index.search.
    """
    device = next(model.retriever.parameters()).device
    vectors_QD = torch.empty(len(queries), model.retriever.dimension, device=device)
    tokenizer, length = model.retriever_tokenizer, flags.text_maxlength
    for numbers, batch_BD in embed(model.retriever, tokenizer, queries, length, QUERY_BATCH, of_passages=False):
        vectors_QD[torch.tensor(numbers, device=device)] = batch_BD.float()
    if not flags.retrieve_with_rerank:
        return index.search(vectors_QD, k)
    _, rows_QR = index.search(vectors_QD, flags.n_to_rerank_with_retrieve_with_rerank)
    found = [
        rerank(flags, model, index, vectors_QD[start : start + RERANKED], rows_QR[start : start + RERANKED], k)
        for start in range(0, len(queries), RERANKED)
    ]
    if not found:
        return torch.empty(0, k), torch.empty(0, k, dtype=torch.long)
    return torch.cat([scores for scores, _ in found]), torch.cat([rows for _, rows in found])


def rerank(
    flags: AtlasFlags, model: Model, index: Index, vectors_QD: torch.Tensor, rows_QR: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best candidates by vectors from the current passage encoder. Among equal scores, lower rows come first.

    The vectors are rounded to float16, like those of an index.

    Args:
        vectors_QD: the vectors of the queries.
        rows_QR: the rows of the R candidates per query; -1 means no candidate.
    """
    rows_QR = rows_QR.sort(dim=1).values
    rows_P, place_QR = rows_QR.unique(return_inverse=True)
    texts = [flags.retriever_format.format(**index.passages[max(row, 0)]) for row in rows_P.tolist()]
    passages_PD = torch.empty(len(texts), vectors_QD.shape[1], device=vectors_QD.device)
    batch_size, tokenizer = flags.per_gpu_embedder_batch_size, model.retriever_tokenizer
    for numbers, batch_BD in embed(model.retriever, tokenizer, texts, flags.text_maxlength, batch_size, True):
        passages_PD[torch.tensor(numbers, device=vectors_QD.device)] = batch_BD.half().float()
    scores_QR = torch.einsum("qd,qrd->qr", vectors_QD, passages_PD[place_QR.to(passages_PD.device)]).cpu()
    scores_QR = scores_QR.masked_fill(rows_QR < 0, -torch.inf)
    scores_QK, order_QK = (part[:, :k] for part in scores_QR.sort(dim=1, descending=True, stable=True))
    return scores_QK, rows_QR.gather(1, order_QK)


def look_up(index: Index, rows: torch.Tensor) -> list[dict[str, str]]:
    """The passages of rows (K). A row of -1 is skipped."""
    return [index.passages[row] for row in rows.tolist() if row >= 0]
