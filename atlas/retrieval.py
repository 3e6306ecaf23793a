"""Queries to passages: embed the queries, search the index, look the passages up."""

from collections.abc import Sequence

import torch

from atlas.index import Index
from atlas.model import Model
from atlas.retriever import embed

QUERY_BATCH = 256


@torch.no_grad()
def retrieve(
    model: Model, index: Index, queries: Sequence[str], k: int, text_maxlength: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best passages of each of this worker's queries; all workers call it together.

    All queries are searched at once: then each block of the index is read once for many of them.

    Returns:
        (scores (Q, K), rows (Q, K)), as Index.search gives them.
    """
    device = next(model.retriever.parameters()).device
    vectors_QD = torch.empty(len(queries), model.retriever.dimension, device=device)
    batches = embed(model.retriever, model.retriever_tokenizer, queries, text_maxlength, QUERY_BATCH, of_passages=False)
    for numbers, batch_BD in batches:
        vectors_QD[torch.tensor(numbers, device=device)] = batch_BD.float()
    return index.search(vectors_QD, k)


def look_up(index: Index, rows: torch.Tensor) -> list[dict[str, str]]:
    """The passages of some rows (K); those of row -1 are none."""
    return [index.passages[row] for row in rows.tolist() if row >= 0]
