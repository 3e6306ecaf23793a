"""Measure exact and compressed search against FAISS on the same vectors (scenarios of perf/atlas.py).

The corpus is that of perf/dictionary.py: 122,845 entries, embedded with minilm in bfloat16. They are embedded once and
kept in the user's cache.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perf import dictionary
from perf.measure import Contender, memory, reset_peak_memory

K = 10
QUESTIONS = 1000
LENGTH = 64
"""Maximum number of tokens of a passage that are embedded. The beginning of an entry says what it is about."""
CACHE = "dictionary-minilm"

SEARCH = [
    Contender("faiss", "FAISS IndexFlatIP, float32", "float32", peer=True),
    Contender("matmul", "torch: matmul and topk, float32", "float32", peer=True),
    Contender("flat", "this project, --index_mode flat", "float16"),
]
COMPRESSED = [
    Contender("flat", "--index_mode flat", "float16"),
    Contender("faiss-flat", "faiss flat", "float32"),
    Contender("ivfflat", "faiss ivfflat", "float32"),
    Contender("ivfsq", "faiss ivfsq", "4 bits"),
    Contender("pq-48", "faiss pq, --faiss_code_size 48", "1 bit"),
    Contender("ivfpq-48", "faiss ivfpq, --faiss_code_size 48", "1 bit"),
    Contender("ivfpq-96", "faiss ivfpq, --faiss_code_size 96", "2 bits"),
]


def index_folder() -> Path:
    from teacherlm.core.places import cache_folder

    return cache_folder() / "perf" / CACHE


def make_index() -> None:
    """Embed the corpus and the questions, once."""
    import numpy as np
    import torch

    from teacherlm.atlas import retriever
    from teacherlm.atlas.flat_search import FlatVectors
    from teacherlm.atlas.index import Index, embed_rows
    from teacherlm.atlas.passages import Passages, write_passages
    from teacherlm.atlas.saved_index import save_index
    from teacherlm.catalog.models import find_model, local_folder
    from teacherlm.runtime.packed_linear import pack_linears

    folder = index_folder()
    if (folder / "queries.npy").is_file():
        return
    passages = dictionary.passages()
    write_passages(folder / "all.arrow", passages)
    made, tokenizer = retriever.load_retriever(local_folder(find_model("minilm")), untied=False)
    pack_linears(made.to(torch.bfloat16))
    started = time.perf_counter()
    with torch.no_grad():
        vectors = embed_rows(Passages(folder / "all.arrow"), made.eval(), tokenizer, "{title} {text}", LENGTH, 512)
        seconds = time.perf_counter() - started
        print(
            f"{len(passages)} passages embedded in {seconds:.0f} s, {len(passages) / seconds:.0f} per second",
            flush=True,
        )
        save_index(folder, Index(Passages(folder / "all.arrow"), FlatVectors([vectors], 0), 384, None), 4, None, None)
        asked = dictionary.questions(passages, QUESTIONS)
        queries = torch.empty(len(asked), 384)
        for numbers, batch in retriever.embed(made, tokenizer, [text for text, _ in asked], LENGTH, 512, False):
            queries[numbers] = batch.float()
    (folder / "answers.json").write_text(json.dumps([int(row) for _, row in asked]))
    np.save(folder / "queries.npy", queries.numpy())


def load_vectors() -> tuple[Any, Any, list[int]]:
    """Return (the vectors in float16, the queries, the row of each query's answer)."""
    import numpy as np
    import torch

    folder = index_folder()
    shards = json.loads((folder / "index.json").read_text())["shards"]
    vectors = torch.cat([torch.from_numpy(np.load(folder / shard["file"])) for shard in shards])
    answers = json.loads((folder / "answers.json").read_text())
    return vectors, torch.from_numpy(np.load(folder / "queries.npy")), answers


def search(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    """Search batches of queries for four seconds. The scenario's name has the number of queries per batch."""
    vectors, queries, _ = load_vectors()
    at_a_time = int(args.scenarios.split("-")[1])
    find = {"faiss": with_faiss, "matmul": with_matmul, "flat": with_flat}[contender](vectors)
    if contender != "flat":
        del vectors
    batches = [queries[start : start + at_a_time] for start in range(0, len(queries) - at_a_time + 1, at_a_time)]
    scores, rows = find(queries[:512])
    for batch in batches[:2]:
        find(batch)
    before, done, started = reset_peak_memory(), 0, time.perf_counter()
    while time.perf_counter() - started < 4:
        find(batches[done % len(batches)])
        done += 1
    seconds = time.perf_counter() - started
    return {
        "value": done * at_a_time / seconds,
        "seconds": seconds / done,
        "added_memory_bytes": memory("VmHWM") - before,
        "numbers": [float(score) for score in scores.flatten()],
        "rows": [int(row) for row in rows.flatten()],
    }


def with_faiss(vectors: Any) -> Callable:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.float().numpy())
    return lambda queries: index.search(queries.numpy(), K)


def with_matmul(vectors: Any) -> Callable:
    import torch

    floats = vectors.float()
    return lambda queries: torch.topk(queries @ floats.T, K, dim=1)


def with_flat(vectors: Any) -> Callable:
    from teacherlm.atlas.flat_search import FlatVectors

    index = FlatVectors([vectors], 0)
    return lambda queries: index.search(queries, K)


def recall(contender: str, args: argparse.Namespace) -> dict[str, Any]:
    """The share of questions whose entry is among the K results, and the memory of the vectors."""
    import faiss

    from teacherlm.atlas import compressed_search

    vectors, queries, answers = load_vectors()
    if contender == "flat":
        find, size = with_flat(vectors), vectors.numel() * 2
    else:
        kind, _, code = contender.removeprefix("faiss-").partition("-")
        count = len(vectors)
        chosen = random.Random(0).sample(range(count), compressed_search.sample_size(kind, count))
        index = compressed_search.train(kind, int(code) if code else None, count, vectors[chosen].float().numpy())
        compressed_search.add(index, [vectors])
        made = compressed_search.CompressedVectors(index, 0)
        find, size = (lambda queries: made.search(queries, K)), len(faiss.serialize_index(index))
    find(queries[:64])
    started = time.perf_counter()
    _, rows = find(queries)
    seconds = time.perf_counter() - started
    found = [answer in row for answer, row in zip(answers, rows.tolist())]
    return {
        "value": len(queries) / seconds,
        "seconds": seconds,
        "recall": 100 * sum(found) / len(found),
        "vectors_bytes": size,
        "numbers": [0.0],
        "rows": [int(row) for row in rows.flatten()],
    }
