"""ATLAS's indices, both this project's (flat and compressed) and published ones: they are loaded, searched and read."""

import hashlib
import json
import pickle
import random
from pathlib import Path

import torch
from support.atlas_models import make_passages, write_lines
from support.fuzz.harness import Subject
from support.fuzz.mutation import Files, damage_one

from teacherlm.atlas import passages as passage_files
from teacherlm.atlas.flat_search import FlatVectors
from teacherlm.atlas.index import Index, compress
from teacherlm.atlas.saved_index import describe_index, load_index, save_index

COUNT, DIMENSION, SHARDS = 24, 8, 2
CPU = torch.device("cpu")


class Runs:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> tuple:
        import os

        return os.system, ("touch victim/README",)


PICKLES = [Runs(), [Runs()], {"a": 1}, [1, 2], [{"id": 1}], [{"id": "1", "title": 2, "text": "x"}] * 12, "x", None, 7]
PICKLES += [[{"id": "\ud800", "title": "", "text": "\ud800"}] * 12, [{"id": "1", "title": "", "text": "x\0"}] * 12]


def example(folder: Path) -> None:
    made = make_passages(COUNT)
    file = write_lines(folder / "passages.jsonl", made)
    arrow = folder / "whole.arrow"
    passage_files.write_passages(arrow, passage_files.read_passages([file], -1))
    vectors = torch.randn(COUNT, DIMENSION, generator=torch.Generator().manual_seed(0)).half()
    index = Index(passage_files.Passages(arrow), FlatVectors([vectors], 0), DIMENSION, encoder="abc")
    save_index(folder / "flat", index, SHARDS, None, None)
    index.vectors = compress(vectors, COUNT, "ivfflat", None)
    save_index(folder / "packed", index, 1, "ivfflat", None)
    arrow.unlink()
    published = folder / "published"
    published.mkdir()
    for shard in range(SHARDS):
        rows = slice(shard * COUNT // SHARDS, (shard + 1) * COUNT // SHARDS)
        torch.save(vectors[rows].T.clone(), published / f"embeddings.{shard}.pt")
        (published / f"passages.{shard}.pt").write_bytes(pickle.dumps(made[rows], protocol=4))


def damage(files: Files, draw: random.Random) -> Files:
    """Damage the files. In half of the cases with vectors or texts, index.json gets the new digest too."""
    if draw.random() < 0.05:
        return files | {"published/passages.0.pt": pickle.dumps(draw.choice(PICKLES), protocol=draw.choice([2, 4, 5]))}
    changed = damage_one(files, draw)
    for folder in ("flat", "packed"):
        if changed.get(f"{folder}/index.json") == files[f"{folder}/index.json"] and draw.random() < 0.5:
            described = json.loads(files[f"{folder}/index.json"])
            digests = {name: hashlib.sha256(content).hexdigest() for name, content in changed.items()}
            described["passages_sha256"] = digests.get(f"{folder}/passages.arrow")
            for shard in described["shards"]:
                shard["sha256"] = digests.get(f"{folder}/{shard['file']}")
            changed[f"{folder}/index.json"] = json.dumps(described).encode()
    return changed


def read(place: Path) -> None:
    queries = torch.randn(3, DIMENSION, generator=torch.Generator().manual_seed(1))
    passage_files.Passages(passage_files.converted([place / "passages.jsonl"], -1))
    for name, kind in (("flat", None), ("packed", "ivfflat"), ("published", None)):
        index = load_index(place / name, kind, None, "abc", DIMENSION, CPU, SHARDS)
        describe_index(place / name, SHARDS)
        scores, rows = index.search(queries, 5)
        assert scores.shape == rows.shape and not scores.isnan().any()
        assert all(-1 <= row < len(index.passages) for row in rows.flatten().tolist())
        for passage in index.passages.between(0, len(index.passages)):
            assert passage.keys() == {"id", "title", "text"} and all(isinstance(text, str) for text in passage.values())


SUBJECT = Subject("index_files", example, read, damage)
