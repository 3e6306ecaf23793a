"""The reference's published indices: whole or refused, found by their contents, converted once, whatever interrupts."""

import multiprocessing
import os
import pickle
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.atlas_models import make_passages, make_questions, make_tiny_bert, make_tiny_t5, run_script, write_lines
from support.atlas_server import Server
from support.files import read_lines
from support.programs import ROOT, only_error, warm_python
from support.warm_python import kill

from teacherlm.atlas.index import Index
from teacherlm.atlas.passages import Passages, converted_once
from teacherlm.atlas.saved_index import describe_index, load_index
from teacherlm.core.errors import UserError

DIMENSION, EACH = 32, 3
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEACHERLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source(shards: int, each: int = EACH, seed: int = 0) -> tuple[list[dict[str, str]], torch.Tensor]:
    """The passages of an index, which must be found again, and their vectors."""
    passages = make_passages(shards * each, seed)
    for passage in passages:
        passage.pop("section", None)
        passage["text"] += f" {seed}"
    vectors = torch.randn(len(passages), DIMENSION, generator=torch.Generator().manual_seed(seed)).half()
    return passages, vectors


def publish(folder: Path, passages: list, vectors: torch.Tensor, shards: int) -> Path:
    """Save an index like the reference: embeddings.N.pt is (dimension, passages) in float16, passages.N.pt a pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    each = len(passages) // shards
    for shard in range(shards):
        rows = slice(shard * each, (shard + 1) * each)
        torch.save(vectors[rows].T.clone(), folder / f"embeddings.{shard}.pt")
        (folder / f"passages.{shard}.pt").write_bytes(pickle.dumps(passages[rows], protocol=4))
    return folder


def load(folder: Path, shards: int = 128) -> Index:
    return load_index(folder, None, None, None, DIMENSION, CPU, shards)


def assert_is(index: Index, passages: list[dict[str, str]], vectors: torch.Tensor) -> None:
    """Check the text and the vector of every row."""
    assert list(index.passages.between(0, len(index.passages))) == passages
    assert torch.equal(torch.cat(index.vectors.segments), vectors)


def test_a_part_is_refused_and_the_whole_is_used_once_it_is_there(tmp_path: Path) -> None:
    """evaluate.py gets 60 of 128 shards and an unfinished download; then all shards; then one shard is changed."""
    passages, vectors = source(128)
    whole = publish(tmp_path / "whole", passages, vectors, 128)
    part = tmp_path / "part"
    part.mkdir()
    for number in range(60):
        for kind in ("embeddings", "passages"):
            shutil.copyfile(whole / f"{kind}.{number}.pt", part / f"{kind}.{number}.pt")
    (part / ".embeddings.60.pt.part").write_bytes((whole / "embeddings.60.pt").read_bytes()[:100])
    questions = write_lines(tmp_path / "test.jsonl", make_questions(3))
    words = ["--retrieve_only", "--write_results", "--n_context", 384, "--eval_data", questions, "--name", "run"]
    words += ["--reader_model_type", make_tiny_t5(tmp_path / "t5"), "--load_index_path", part]
    words += ["--retriever_model_path", make_tiny_bert(tmp_path / "bert"), "--checkpoint_dir", tmp_path / "out"]

    def evaluate() -> subprocess.CompletedProcess:
        return run_script(ROOT / "atlas" / "evaluate.py", list(map(str, words)), {})

    def found() -> list[list[str]]:
        lines = read_lines(tmp_path / "out" / "run" / "test-step-0.jsonl")
        return [sorted(passage["text"] for passage in line["passages"]) for line in lines]

    message = only_error(evaluate())
    assert "embeddings.60.pt: this shard is missing; 60 of 128 are there; download the index again" in message
    assert not (tmp_path / "out" / "run" / "test-step-0.jsonl").exists()
    shutil.copytree(whole, part, dirs_exist_ok=True)
    assert evaluate().returncode == 0
    assert found() == [sorted(passage["text"] for passage in passages)] * 3
    assert "done already" in evaluate().stdout
    passages[77 * EACH]["text"] = "another text"
    publish(whole, passages, vectors, 128)
    shutil.copyfile(whole / "passages.77.pt", part / "passages.77.pt")
    assert "done already" not in evaluate().stdout
    assert found() == [sorted(passage["text"] for passage in passages)] * 3


def test_the_published_format_is_read(tmp_path: Path) -> None:
    """An index with another number of shards is read too if the number is given."""
    passages, vectors = source(3)
    folder = publish(tmp_path / "index", [{**passage, "section": "x"} for passage in passages], vectors, 3)
    assert_is(load(folder, 3), passages, vectors)
    missing, extra = r"embeddings.3.pt: this shard is missing", r"embeddings.2.pt: an index of 2 shards was expected"
    for shards, message in ((4, missing), (2, extra)):
        with pytest.raises(UserError, match=message):
            load(folder, shards)
    (folder / "passages.1.pt").unlink()
    with pytest.raises(UserError, match=r"passages.1.pt: this shard is missing; 2 of 3"):
        load(folder, 3)


def test_replaced_in_place_with_the_same_sizes_and_times(tmp_path: Path) -> None:
    old, vectors = source(3, seed=1)
    folder = publish(tmp_path / "index", old, vectors, 3)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert_is(load(folder, 3), old, vectors)
    before = describe_index(folder, 3)
    new = [{**passage, "text": passage["text"][::-1]} for passage in old]
    publish(folder, new, vectors.flip(0), 3)
    for path, moment in times.items():
        os.utime(path, ns=(moment, moment))
    assert describe_index(folder, 3)["sha256"] != before["sha256"]
    assert_is(load(folder, 3), new, vectors.flip(0))


def test_two_folders_whose_paths_differ_by_a_slash_only(tmp_path: Path) -> None:
    for seed, name in enumerate(("x_y/base", "x/y_base")):
        assert_is(load(publish(tmp_path / name, *source(2, seed=seed), 2), 2), *source(2, seed=seed))


def shard_without(field: str) -> Callable[[list], object]:
    return lambda passages: [{name: value for name, value in p.items() if name != field} for p in passages]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda passages: passages[:-1],
            r"passages.1.pt: a list of 3 passages was expected, one per vector of embeddings.1.pt, found 2",
        ),
        (lambda passages: {"a": passages}, r"passages.1.pt: a list of 3 passages was expected, .* found dict"),
        (lambda passages: [*passages[:2], "a text"], r"passages.1.pt, passage 2: a mapping .* found 'a text'"),
        (lambda passages: [None, *passages[:2]], r"passages.1.pt, passage 0: a mapping .* found 'None'"),
        (shard_without("text"), r"passages.1.pt, passage 0: the field 'text' is missing"),
        (shard_without("id"), r"passages.1.pt, passage 0: the field 'id' is missing"),
        (lambda passages: [print], r"passages.1.pt: not a pickled list .*builtins.print"),
    ],
)
def test_what_is_wrong_with_a_shard_is_said(change: Callable, message: str, tmp_path: Path) -> None:
    passages, vectors = source(2)
    folder = publish(tmp_path / "index", passages, vectors, 2)
    (folder / "passages.1.pt").write_bytes(pickle.dumps(change(passages[EACH:]), protocol=4))
    with pytest.raises(UserError, match=message):
        load(folder, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04]r\xff\xff\xff\x7f.", "passages.1.pt: a list of 3 passages was expected, .* found 0"),  # 2**31
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "passages.1.pt: not a pickled list .*instruction 150"),
        (b"\x80\x04\x8a\xff" + b"\x01" * 255 + b".", "passages.1.pt: a list of 3 passages was expected, .* found int"),
    ],
)
def test_a_few_bytes_that_ask_for_memory(content: bytes, message: str, tmp_path: Path) -> None:
    passages, vectors = source(2)
    folder = publish(tmp_path / "index", passages, vectors, 2)
    (folder / "passages.1.pt").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        load(folder, 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


def test_other_numbers_of_vectors_are_found_though_the_passages_were_converted(tmp_path: Path) -> None:
    passages, vectors = source(2)
    folder = publish(tmp_path / "index", passages, vectors, 2)
    load(folder, 2)
    torch.save(vectors[:2].T.clone(), folder / "embeddings.0.pt")
    torch.save(vectors[2:].T.clone(), folder / "embeddings.1.pt")
    with pytest.raises(
        UserError, match=r"passages.0.pt: a list of 2 passages was expected, one per vector of embeddings.0.pt, found 3"
    ):
        load(folder, 2)


def test_a_passage_with_an_empty_text_stays(tmp_path: Path) -> None:
    passages, vectors = source(2)
    passages[4]["text"] = ""
    assert_is(load(publish(tmp_path / "index", passages, vectors, 2), 2), passages, vectors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    passages, vectors = source(3)
    vectors[5, 7] = value
    with pytest.raises(UserError, match=r"embeddings.1.pt: the vector of row 2 has numbers that are not finite"):
        load(publish(tmp_path / "index", passages, vectors, 3), 3)


# --- several processes, and interruptions

FORK = multiprocessing.get_context("fork")


def test_of_many_that_ask_at_once_one_converts(tmp_path: Path) -> None:
    """Each process records that it reads the shards, and reads slowly. The others wait."""
    passages, _ = source(4)
    notes = tmp_path / "notes"

    def slowly() -> Iterator[dict[str, str]]:
        with open(notes, "a") as file:
            file.write(f"{os.getpid()}\n")
        for passage in passages:
            time.sleep(0.02)
            yield passage

    def work() -> None:
        found = Passages(converted_once("key", slowly()))
        os._exit(0 if list(found.between(0, len(found))) == passages else 1)

    processes = [FORK.Process(target=work) for _ in range(12)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 12
    assert len(notes.read_text().splitlines()) == 1


SOME = pytest.param(4, id="some")
TWENTY = pytest.param(20, id="twenty", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])


@pytest.mark.parametrize("moments", [SOME, TWENTY])
def test_killed_while_it_converts(moments: int, tmp_path: Path, cache: Path) -> None:
    """It is killed at random moments. What is left behind is never used, and every row equals the source's."""
    passages, vectors = source(128, each=40)
    folder = publish(tmp_path / "index", passages, vectors, 128)
    started = time.monotonic()
    load(folder)
    seconds = time.monotonic() - started
    draw, killed = random.Random(0), 0
    for _ in range(moments):
        shutil.rmtree(cache)
        process = FORK.Process(target=load, args=(folder,))
        process.start()
        time.sleep(draw.uniform(0, seconds))
        killed += process.is_alive()
        process.kill()
        process.join()
        assert_is(load(folder), passages, vectors)
    assert killed > moments / 2


class Publisher(Server):
    """Serves a folder's files by their names."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def body(self, path: str) -> bytes:
        return (self.folder / path.rsplit("/", 1)[1]).read_bytes()


@pytest.mark.parametrize("moments", [SOME, TWENTY])
def test_killed_while_it_downloads(moments: int, tmp_path: Path) -> None:
    """After each kill, the index is refused or complete, and the same command resumes. All rows equal the source's."""
    import threading

    passages, vectors = source(128)
    server = Publisher(publish(tmp_path / "source", passages, vectors, 128))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    command = [warm_python(), str(ROOT / "atlas" / "preprocessing" / "download_index.py"), "--index"]
    command += ["indices/atlas/wiki/base", "--base_url", f"http://127.0.0.1:{server.server_port}"]
    draw, refused, complete = random.Random(0), 0, 0
    output = tmp_path / "0"
    folder = output / "indices/atlas/wiki/base"
    for moment in range(moments):
        served = len(server.asked)
        process = subprocess.Popen([*command, "--output_directory", str(output)], stdout=subprocess.DEVNULL)
        wanted = served + draw.randint(1, 200)
        while process.poll() is None and len(server.asked) < wanted:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.005))
        kill(process)
        try:
            assert_is(load(folder), passages, vectors)
            complete += 1
            output = tmp_path / str(moment + 1)
            folder = output / "indices/atlas/wiki/base"
        except UserError as error:
            assert "is missing" in str(error) or "no such folder" in str(error) or "no index there" in str(error)
            refused += 1
    subprocess.run([*command, "--output_directory", str(output)], check=True, stdout=subprocess.DEVNULL)
    assert_is(load(folder), passages, vectors)
    server.shutdown()
    server.server_close()
    assert refused >= moments / 2, (refused, complete)
