"""The index: passages and their vectors. Each worker holds a part of the vectors, and all workers search together."""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from teacherlm.atlas import compressed_search, workers
from teacherlm.atlas.flat_search import first_bad_row
from teacherlm.atlas.passages import Passages
from teacherlm.atlas.retriever import CHUNK, Retriever, embed
from teacherlm.core.errors import UserError
from teacherlm.core.terminal import plural

QUERIES = 2048
"""Maximum number of queries of all workers together that are searched at a time."""
ROWS_BETWEEN_NOTES = 200_000


class Vectors(Protocol):
    """FlatVectors or CompressedVectors."""

    def __len__(self) -> int: ...

    def search(self, queries_QD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass
class Index:
    """All passages, which every worker reads from the same file, and the vectors of this worker's part of them."""

    passages: Passages
    vectors: Vectors
    dimension: int
    encoder: str | None
    """Fingerprint of the encoder that made the vectors; None for a published index, which has none."""

    def search(self, queries_QD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best passages for each of this worker's queries, among the passages of all workers.

        All workers call this together. Each worker passes separate queries, any number of them.

        Returns:
            (scores (Q, K), rows (Q, K)) on the CPU, the best first, K = min(k, passages). A row of -1 means no passage.
        """
        k = min(k, len(self.passages))
        slice_size = max(1, QUERIES // workers.size())
        longest = max(workers.gather(len(queries_QD)))
        found = [
            self.search_slice(queries_QD[start : start + slice_size], k) for start in range(0, longest, slice_size)
        ]
        if not found:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.long)
        return torch.cat([scores for scores, _ in found]), torch.cat([rows for _, rows in found])

    def search_slice(self, queries_QD: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        everyone_QD, counts = workers.gather_rows(queries_QD.float())
        if not everyone_QD.isfinite().all():  # all workers have the same vectors, so all of them end
            mistake = "a query's vector is not finite (NaN or infinity); is the retriever's checkpoint intact?"
            raise UserError(mistake) if workers.is_first() else SystemExit(2)
        scores_QK, rows_QK = self.vectors.search(everyone_QD.to(queries_QD.device), k)
        scores_QK, rows_QK = filled(scores_QK.cpu(), k, -torch.inf), filled(rows_QK.cpu(), k, -1)
        if dist.is_initialized():
            all_scores = [torch.empty_like(scores_QK) for _ in counts]
            all_rows = [torch.empty_like(rows_QK) for _ in counts]
            dist.all_gather(all_scores, scores_QK)
            dist.all_gather(all_rows, rows_QK)
            # Parts are in the order of the rows and the sort is stable, so equal scores are in the order of the rows.
            scores_QK, order = torch.sort(torch.cat(all_scores, dim=1), dim=1, descending=True, stable=True)
            rows_QK = torch.cat(all_rows, dim=1).gather(1, order)[:, :k]
            scores_QK = scores_QK[:, :k]
        start = sum(counts[: workers.rank()])
        mine = slice(start, start + counts[workers.rank()])
        return scores_QK[mine], rows_QK[mine]


def filled(values_QK: torch.Tensor, k: int, value: float) -> torch.Tensor:
    """Fill the columns up to k with a value, because a worker's part may have fewer passages."""
    return torch.nn.functional.pad(values_QK, (0, k - values_QK.shape[1]), value=value)


def embed_rows(
    passages: Passages, retriever: Retriever, tokenizer: Any, text_format: str, max_length: int, batch_size: int
) -> torch.Tensor:
    """Embed this worker's part of the passages: float16 (n, D) on the retriever's device.

    Args:
        text_format: the format of a passage's text, with {title} and {text}.
        max_length: maximum number of tokens per text.
        batch_size: maximum number of passages per batch.

    Raises:
        UserError: a vector has numbers that are not finite.
    """
    start, end = workers.rows_of(len(passages))
    device = next(retriever.parameters()).device
    vectors_ND = torch.empty(end - start, retriever.dimension, dtype=torch.float16, device=device)
    began, done, said = time.monotonic(), 0, 0
    for chunk in range(start, end, CHUNK):
        stop = min(chunk + CHUNK, end)
        texts = [text_format.format(**passage) for passage in passages.between(chunk, stop)]
        for numbers, batch_BD in embed(retriever, tokenizer, texts, max_length, batch_size, of_passages=True):
            where = torch.tensor(numbers, device=device) + chunk - start
            vectors_ND[where] = batch_BD.to(torch.float16)
            done += len(numbers)
        if (bad := first_bad_row(vectors_ND[chunk - start : stop - start])) is not None:
            raise UserError(
                f"{passages.path}: the vector of row {chunk + bad} (the passage {passages[chunk + bad]['id']!r}) has "
                "numbers that are not finite (NaN or infinity) in float16; is the retriever's checkpoint intact?"
            )
        if done - said >= ROWS_BETWEEN_NOTES:
            said = done
            rate = done / (time.monotonic() - began)
            workers.say(f"index: embedded {done} of {plural(end - start, 'passage')}, {rate:.0f} per second")
    return vectors_ND


def compress(
    vectors_ND: torch.Tensor, count: int, kind: str, code_size: int | None
) -> compressed_search.CompressedVectors:
    """Compress this worker's vectors. The first worker trains the index on a sample from all workers, for all of them.

    Args:
        vectors_ND: this worker's vectors.
        count: number of all passages.
    """
    import faiss

    start, _ = workers.rows_of(count)
    wanted = compressed_search.sample_size(kind, count)
    generator = torch.Generator().manual_seed(0)
    mine = min(len(vectors_ND), -(-wanted * len(vectors_ND) // max(1, count)))
    chosen = torch.randperm(len(vectors_ND), generator=generator)[:mine].sort().values
    sample_ND, _ = workers.gather_rows(vectors_ND[chosen.to(vectors_ND.device)].float())
    learned = b""
    if workers.is_first():
        empty = compressed_search.train(kind, code_size, count, sample_ND.numpy())
        learned = faiss.serialize_index(empty).tobytes()
    index = faiss.deserialize_index(np.frombuffer(bytearray(workers.bytes_from_first(learned)), np.uint8))
    compressed_search.add(index, [vectors_ND])
    return compressed_search.CompressedVectors(index, start)
