"""Binary files that are damaged or made to hurt: one line names them, and no signal ends the process.

Many mutations of one file are read in a child process, whose exit status shows a signal.
"""

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch
from backports import zstd
from support.atlas_models import make_passages, write_lines
from support.programs import only_error, warm_python

from teacherlm.atlas import passages as passage_files
from teacherlm.atlas.flat_search import FlatVectors
from teacherlm.atlas.index import Index
from teacherlm.atlas.learner import check_deepspeed_files
from teacherlm.atlas.saved_index import load_index, save_index
from teacherlm.core.errors import UserError
from teacherlm.core.records import read_records
from teacherlm.core.saved_datasets import load_saved, saved_files
from teacherlm.runtime.pickles import load_plain

MUTATIONS = 100
CHILD = """
import random, sys
from pathlib import Path
from teacherlm.core.errors import UserError
{imports}
file, draw, refused = Path(sys.argv[1]), random.Random(0), 0
whole = file.read_bytes()
for number in range({mutations}):
    data = bytearray(whole)
    for _ in range(draw.choice([1, 1, 2, 8])):
        place, size = draw.randrange(len(data)), draw.choice([1, 4, 8])
        data[place : place + size] = draw.choice([bytes(8), bytes([255]) * 8, draw.randbytes(8)])[:size]
    if draw.random() < 0.2:
        del data[draw.randrange(len(data)) :]
    file.unlink()
    file.write_bytes(data)
    try:
        {read}
    except UserError:
        refused += 1
print(refused)
"""
INDEX = "import torch; from teacherlm.atlas.saved_index import load_index"
LOAD = "load_index(file.parent, None, None, None, 16, torch.device('cpu'))"


def refused_of(file: Path, imports: str, read: str, mutations: int = MUTATIONS) -> int:
    """How many of the mutations of a file are refused, read one after the other in a child process."""
    program = CHILD.format(imports=imports, read=read, mutations=mutations)
    child = subprocess.run([warm_python(), "-c", program, file], capture_output=True, text=True)
    assert child.returncode == 0, (child.returncode, child.stderr[-2000:])
    return int(child.stdout)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHERLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """The Arrow file of some passages."""
    return passage_files.converted([write_lines(tmp_path / "passages.jsonl", make_passages(60))], -1)


@pytest.fixture
def saved_index(converted: Path, tmp_path: Path) -> Path:
    passages = passage_files.Passages(converted)
    index = Index(passages, FlatVectors([torch.zeros(len(passages), 16).half()], 0), 16, encoder=None)
    save_index(tmp_path / "index", index, 2, None, None)
    return tmp_path / "index"


def change_description(index: Path, **shard: object) -> None:
    """Change what index.json says of all shards."""
    description = json.loads((index / "index.json").read_text())
    description["passages_sha256"] = None
    for described in description["shards"]:
        described |= shard
    (index / "index.json").write_text(json.dumps(description))


def test_damaged_passages_end_no_process(converted: Path) -> None:
    read = "passages = Passages(file); list(passages.between(0, len(passages)))"
    assert refused_of(converted, "from teacherlm.atlas.passages import Passages", read) > MUTATIONS / 4


def test_damaged_passages_of_an_index_are_found_before_they_are_mapped(saved_index: Path) -> None:
    read = f"index = {LOAD}; list(index.passages.between(0, len(index.passages)))"
    assert refused_of(saved_index / "passages.arrow", INDEX, read, 40) > 36


def test_damaged_vectors_without_a_digest_end_no_process(saved_index: Path) -> None:
    """An index of format 1 has no digests."""
    change_description(saved_index, sha256=None)
    assert refused_of(saved_index / "embeddings.00001.npy", INDEX, LOAD, 40) > 4


def test_what_index_json_says_is_checked(saved_index: Path) -> None:
    assert refused_of(saved_index / "index.json", INDEX, LOAD, 40) > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../../passages.jsonl"}, "the name of a shard was expected"),
        ({"file": "/etc/passwd"}, "the name of a shard was expected"),
        ({"file": 3}, "the name of a shard was expected"),
        ({"rows": -1}, "rows: a number was expected"),
        ({"rows": "30"}, "rows: a number was expected"),
        ({"sha256": ["a"]}, "sha256: a text was expected"),
    ],
)
def test_a_shard_is_a_file_in_the_folder(saved_index: Path, change: dict[str, object], message: str) -> None:
    change_description(saved_index, **change)
    with pytest.raises(UserError, match=message):
        load_index(saved_index, None, None, None, 16, torch.device("cpu"))


def test_batches_of_another_size_are_not_taken_for_ours(tmp_path: Path) -> None:
    """A division finds the batch of a row, so such batches would give another passage."""
    rows = [{"id": str(number), "title": "", "text": "text"} for number in range(30)]
    with pa.OSFile(str(tmp_path / "p.arrow"), "wb") as file, pa.ipc.new_file(file, passage_files.SCHEMA) as writer:
        for start in range(0, 30, 10):
            writer.write_batch(pa.RecordBatch.from_pylist(rows[start : start + 10], passage_files.SCHEMA))
    with pytest.raises(UserError, match="each batch but the last was expected to have"):
        passage_files.Passages(tmp_path / "p.arrow")


def test_passages_in_the_cache_that_were_damaged_are_converted_again(converted: Path, tmp_path: Path) -> None:
    whole = converted.read_bytes()
    converted.write_bytes(whole.replace(b"river", b"RIVER"))
    assert passage_files.converted([tmp_path / "passages.jsonl"], -1) == converted
    assert converted.read_bytes() == whole


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [{"cot": f"Because of {number}.", "answer": number, "tags": ["a"] * (number % 3)} for number in range(100)]
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_a_damaged_dataset_ends_no_process(dataset: Path) -> None:
    (file,) = (dataset / "train").glob("*.arrow")
    imports = "from teacherlm.core.saved_datasets import load_saved"
    assert refused_of(file, imports, "load_saved(file.parent.parent)['train'].to_list()") > MUTATIONS / 10


@pytest.mark.parametrize("name", ["../../evil.arrow", "/etc/passwd", "..", "a/b.arrow"])
def test_a_saved_dataset_names_files_of_its_own(dataset: Path, name: str) -> None:
    """Otherwise `keep_source` would copy a file to wherever such a name leads."""
    state = json.loads((dataset / "train" / "state.json").read_text())
    state["_data_files"][0]["filename"] = name
    (dataset / "train" / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="plain name"):
        saved_files(dataset)
    (dataset / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(UserError, match="plain name"):
        load_saved(dataset)


class Evil:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('the code ran')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_by_its_reader(tmp_path: Path, zipped: bool) -> None:
    torch.save({"state": Evil()}, tmp_path / "optimizer.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"optimizer.pt: refused"):
        load_plain(tmp_path / "optimizer.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_atlas_s_shared_states_are_looked_at_before_deepspeed_reads_them(tmp_path: Path, zipped: bool) -> None:
    torch.save({"module": {"weight": torch.ones(3)}}, tmp_path / "mp_rank_00_model_states.pt")
    check_deepspeed_files(tmp_path)
    file = tmp_path / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": Evil()}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"optim_states.pt: refused"):
        check_deepspeed_files(tmp_path)


@pytest.mark.parametrize("mapped", [True, False])
def test_damaged_states_end_no_process(tmp_path: Path, mapped: bool) -> None:
    torch.save({"a": torch.arange(200.0), "b": [torch.ones(3, 4), {"c": 1}]}, tmp_path / "states.pt")
    imports = "from teacherlm.runtime.pickles import load_plain"
    assert refused_of(tmp_path / "states.pt", imports, f"str(load_plain(file, mapped={mapped}))") > MUTATIONS / 10


@pytest.mark.parametrize("pack", [(".gz", lambda data: gzip.compress(data, 1)), (".zst", zstd.compress)])
def test_a_small_file_that_unpacks_to_very_much_is_refused(tmp_path: Path, pack: tuple[str, Callable]) -> None:
    """Of a file with gigabytes, no more would be unpacked than of these 80 million spaces."""
    ending, compress = pack
    file = tmp_path / f"records.jsonl{ending}"
    file.write_bytes(compress(b" " * 80_000_000))
    with pytest.raises(UserError, match=r"unpacks to more than|a line of at most"):
        list(read_records(file))


def test_a_compressed_split_that_unpacks_to_very_much_is_one_line(
    inside: Callable, claims: Path, tmp_path: Path
) -> None:
    (claims / "train.json").unlink()
    (claims / "train.json.gz").write_bytes(gzip.compress(b"[" + b" " * 80_000_000 + b"]", 1))
    words = ["--data", claims, "--output_dir", tmp_path / "out", "--test_dir", tmp_path / "tests"]
    assert "train.json.gz: it unpacks to more than" in only_error(inside("data_prepare", *words))


def test_text_that_packs_well_is_read(tmp_path: Path) -> None:
    """Ten thousand equal lines, and a hundred thousand different ones."""
    lines = [json.dumps({"number": 1, "text": "the same"})] * 10_000
    lines += [json.dumps({"number": number, "text": f"line {number}"}) for number in range(100_000)]
    data = "\n".join(lines).encode()
    for ending, compress in ((".gz", gzip.compress), (".zst", zstd.compress)):
        (tmp_path / f"a.jsonl{ending}").write_bytes(compress(data))
        assert sum(1 for _ in read_records(tmp_path / f"a.jsonl{ending}")) == len(lines)
