"""Passages and indices on disk: saved files are loaded by any number of workers, and damaged files are named."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.atlas_models import make_passages, make_tiny_bert, write_lines

from teacherlm.atlas import passages as passage_files
from teacherlm.atlas import retriever
from teacherlm.atlas.flat_search import FlatVectors
from teacherlm.atlas.index import Index, compress, embed_rows
from teacherlm.atlas.saved_index import load_compressed, load_index, save_index
from teacherlm.core.errors import UserError

COUNT, DIMENSION = 500, 16
CPU = torch.device("cpu")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("TEACHERLM_CACHE", str(tmp_path / "cache"))
    file = write_lines(tmp_path / "passages.jsonl", make_passages(COUNT))
    passages = passage_files.Passages(passage_files.converted([file], -1))
    vectors = torch.randn(COUNT, DIMENSION, generator=torch.Generator().manual_seed(0)).half()
    return Index(passages, FlatVectors([vectors], 0), DIMENSION, encoder="abc")


def queries() -> torch.Tensor:
    return torch.randn(9, DIMENSION, generator=torch.Generator().manual_seed(1))


def load(folder: Path, kind: str | None = None, code_size: int | None = None, **other: object) -> Index:
    asked = {"encoder": "abc", "dimension": DIMENSION, "device": CPU, **other}
    return load_index(folder, kind, code_size, **asked)


def test_passages_come_as_they_are_written(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passage_files, "ROWS", 64)
    file = tmp_path / "passages.jsonl"
    passages = passage_files.Passages(passage_files.converted([file, file], 700))
    written = make_passages(COUNT)
    assert len(passages) == 700
    for row in (0, 1, 63, 64, 499, 500, 699):
        source = written[row % COUNT]
        title = f"{source['title']}: {source['section']}" if "section" in source else source["title"]
        assert passages[row] == {"id": source["id"], "title": title, "text": source["text"]}


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_a_flat_index_is_loaded_as_it_was(index: Index, tmp_path: Path, shards: int) -> None:
    save_index(tmp_path / "index", index, shards, None, None)
    loaded = load(tmp_path / "index")
    assert len(list((tmp_path / "index").glob("embeddings.*.npy"))) == shards
    assert len(loaded.vectors.segments) == shards
    for found, expected in zip(loaded.search(queries(), 10), index.search(queries(), 10)):
        assert torch.equal(found, expected)
    assert loaded.passages[17] == index.passages[17]


@pytest.mark.parametrize(("kind", "code_size"), [("ivfflat", None), ("ivfsq", None), ("pq", 4), ("ivfpq", 4)])
def test_a_compressed_index_is_loaded_as_such(index: Index, tmp_path: Path, kind: str, code_size: int | None) -> None:
    vectors = torch.cat(index.vectors.segments)
    index.vectors = compress(vectors, COUNT, kind, code_size)
    save_index(tmp_path / "index", index, 128, kind, code_size)
    loaded = load(tmp_path / "index", kind, code_size)
    assert not list((tmp_path / "index").glob("embeddings*"))
    for found, expected in zip(loaded.search(queries(), 10), index.search(queries(), 10)):
        assert torch.equal(found, expected)
    with pytest.raises(UserError, match=f"it is a compressed index .{kind}"):
        load(tmp_path / "index")


def test_a_flat_index_can_be_compressed_when_it_is_loaded(index: Index, tmp_path: Path) -> None:
    save_index(tmp_path / "index", index, 5, None, None)
    loaded = load(tmp_path / "index", "ivfflat")
    scores, rows = loaded.search(queries(), 10)
    expected_scores, expected_rows = index.search(queries(), 10)
    torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=0)
    assert torch.equal(rows, expected_rows)


def test_what_is_damaged_or_another_s_is_named(index: Index, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    save_index(folder, index, 3, None, None)
    with pytest.raises(UserError, match="made by another passage encoder"):
        load(folder, encoder="another")
    with pytest.raises(UserError, match="16 dimensions, but the retriever's have 32"):
        load(folder, dimension=32)
    described = json.loads((folder / "index.json").read_text())
    old_format = {**described, "passages_sha256": None, "shards": [{**s, "sha256": None} for s in described["shards"]]}
    (folder / "index.json").write_text(json.dumps(old_format))  # in the new format, only the digests are compared
    shard = folder / "embeddings.00001.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"embeddings.00001.npy: truncated or damaged"):
        load(folder)
    np.save(shard, np.zeros((10, DIMENSION), dtype=np.float16))
    with pytest.raises(UserError, match=r"embeddings.00001.npy: \(167, 16\) numbers in float16 were expected"):
        load(folder)
    shard.write_bytes(whole)
    passages = folder / "passages.arrow"
    whole = passages.read_bytes()
    passages.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"passages.arrow: not a complete Arrow file"):
        load(folder)
    (folder / "index.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"passages.arrow: not the file that index.json describes"):
        load(folder)
    passages.write_bytes(whole)
    (folder / "index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index.json: not a valid description of an index"):
        load(folder)
    (folder / "index.json").unlink()
    with pytest.raises(UserError, match=r"no index there \(index.json is written last"):
        load(folder)
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_a_file_of_another_index_is_refused(index: Index, tmp_path: Path) -> None:
    """The situation after an interrupted copy of another index of the same shape over this one."""
    save_index(tmp_path / "one", index, 3, None, None)
    index.vectors = FlatVectors([torch.cat(index.vectors.segments).flip(0)], 0)
    save_index(tmp_path / "other", index, 3, None, None)
    assert torch.equal(load(tmp_path / "other").vectors.segments[0][0], index.vectors.segments[0][0])
    shutil.copyfile(tmp_path / "one" / "embeddings.00001.npy", tmp_path / "other" / "embeddings.00001.npy")
    with pytest.raises(UserError, match=r"embeddings.00001.npy: not the file that index.json describes"):
        load(tmp_path / "other")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_vectors_that_are_not_finite_are_refused(index: Index, tmp_path: Path, value: float) -> None:
    """A passage with such a vector would be the best one for every query."""
    index.vectors.segments[0][200, 3] = value
    save_index(tmp_path / "index", index, 3, None, None)
    with pytest.raises(UserError, match=r"embeddings.00001.npy: the vector of row 34 has numbers that are not finite"):
        load(tmp_path / "index")


def test_faiss_vectors_that_are_not_finite_are_refused(index: Index, tmp_path: Path) -> None:
    import faiss

    index.vectors = compress(torch.cat(index.vectors.segments), COUNT, "flat", None)
    save_index(tmp_path / "index", index, 1, "flat", None)
    (file,) = (tmp_path / "index").glob("faiss.*")
    saved = faiss.read_index(str(file))
    saved.add(np.full((1, DIMENSION), np.nan, dtype=np.float32))
    faiss.write_index(saved, str(file))
    with pytest.raises(UserError, match=f"faiss.flat.00000.index: the vector of row {COUNT} has numbers that"):
        load_compressed([(file, COUNT + 1)])


def test_embedding_names_the_passage_whose_vector_is_not_finite(index: Index, tmp_path: Path) -> None:
    """In float16, which cannot represent 70,000."""
    made, tokenizer = retriever.load_retriever(make_tiny_bert(tmp_path / "bert"), untied=False)
    with torch.no_grad():
        made.query.embeddings.LayerNorm.bias[0] = 7e4
        made.query.encoder.layer = torch.nn.ModuleList()
    with pytest.raises(UserError, match=r"the vector of row 0 \(the passage '0'\) has numbers that are not finite"):
        embed_rows(index.passages, made.eval(), tokenizer, "{title} {text}", 50, 8)


def test_a_query_whose_vector_is_not_finite_is_refused(index: Index) -> None:
    asked = queries()
    asked[4, 0] = float("nan")
    with pytest.raises(UserError, match="a query's vector is not finite"):
        index.search(asked, 10)


def test_passages_are_found_by_their_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with the same name, size and time but other contents, and files with the same contents and another name."""
    monkeypatch.setenv("TEACHERLM_CACHE", str(tmp_path / "cache"))
    file = write_lines(tmp_path / "p.jsonl", [{"id": "1", "title": "t", "text": "old"}])
    time = file.stat().st_mtime_ns
    first = passage_files.converted([file], -1)
    assert passage_files.Passages(first)[0]["text"] == "old"
    write_lines(file, [{"id": "1", "title": "t", "text": "new"}])
    os.utime(file, ns=(time, time))
    assert passage_files.Passages(passage_files.converted([file], -1))[0]["text"] == "new"
    other = write_lines(tmp_path / "q.jsonl", [{"id": "1", "title": "t", "text": "old"}])
    assert passage_files.converted([other], -1) == first


def test_a_truncated_faiss_file_is_named(index: Index, tmp_path: Path) -> None:
    index.vectors = compress(torch.cat(index.vectors.segments), COUNT, "ivfflat", None)
    save_index(tmp_path / "index", index, 1, "ivfflat", None)
    (file,) = (tmp_path / "index").glob("faiss.*")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"faiss.ivfflat.00000.index: not the file that index.json"):
        load(tmp_path / "index", "ivfflat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "line 3: the field 'text' must be a text"),
        ({"text": "  "}, "line 3: the field 'text' is empty"),
        ({"id": None}, "line 3: the field 'id' is missing"),
        ({"title": 3}, "line 3: the field 'title' must be a text, found '3'"),
    ],
)
def test_a_malformed_passage_is_named(change: dict, message: str, tmp_path: Path) -> None:
    passages = make_passages(5)
    passages[2] |= change
    file = write_lines(tmp_path / "p.jsonl", passages)
    with pytest.raises(UserError, match=message):
        list(passage_files.read_passages([file], -1))


def test_a_passage_without_text_is_named(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "p.jsonl", [{"id": "1", "title": "x"}])
    with pytest.raises(UserError, match="line 1: the field 'text' is missing"):
        list(passage_files.read_passages([file], -1))


def test_saving_again_leaves_no_file_of_the_index_before(index: Index, tmp_path: Path) -> None:
    save_index(tmp_path / "index", index, 7, None, None)
    save_index(tmp_path / "index", index, 2, None, None)
    described = json.loads((tmp_path / "index" / "index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "index").glob("embeddings*"))
    assert files == [shard["file"] for shard in described["shards"]]
    assert len(files) == 2
