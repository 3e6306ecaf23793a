"""Two processes, or more, on one output: it ends as if one had run alone, whichever begins first and whoever is killed.

Each case runs a few times in `make test`, and a hundred times in `make prove ONLY=at_once`.
"""

import itertools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.at_once import AtOnce
from support.enhancing import prompts
from support.files import read_lines
from support.finetuning import flags, read_log, weights
from support.scoring import words as evaluate_words
from support.two_processes import start

from teacherlm.core.lock import one_writer

RECORDS = 3
TEXTS = ["--task_type", "cot_text", "--num_tokens", 6, "--dtype", "float32", "--batch_size", 1]
Command = list[object]


@dataclass
class Place:
    """The files that all repetitions read."""

    model: Path
    prepared: Path
    records: Path
    shards: Path


def enhance(place: Place, folder: Path) -> list[Command]:
    command = ["enhance", "--name", place.model, "--input", place.records, "--output", folder / "SAMPLE_cot.jsonl"]
    return [[*command, *TEXTS]] * 2


def finetune(place: Place, folder: Path) -> list[Command]:
    words = flags(place.model, place.prepared / "SAMPLE", folder / "run")
    return [["finetune", *words, "--max_train_samples", 8, "--num_train_epochs", 1, "--logging_steps", 1]] * 2


def evaluate(place: Place, folder: Path) -> list[Command]:
    command = ["evaluate", *evaluate_words(place.model, "sample", place.prepared / "tests", folder)]
    return [[*command, "--limit", 8, "--batch_size", 2]] * 2


def evaluate_shards(place: Place, folder: Path) -> list[Command]:
    """Two shards, each scored by two processes. The processes that end last merge them at the same time."""
    command = evaluate(place, folder)[0]
    return [[*command, "--shard", f"{index}/2"] for index in (0, 1, 0, 1)]


def prepare(place: Place, folder: Path) -> list[Command]:
    command = ["data_prepare", "--benchmark", "sample", "--limit", 12]
    return [[*command, "--output_dir", folder, "--test_dir", folder / "tests"]] * 2


def prepare_one_test_set(place: Place, folder: Path) -> list[Command]:
    """Training samples into two folders, the test set into one."""
    command = ["data_prepare", "--benchmark", "sample", "--limit", 12, "--test_dir", folder / "tests"]
    return [[*command, "--output_dir", folder / name] for name in ("one", "other")]


def post_process(place: Place, folder: Path) -> list[Command]:
    folder.mkdir(exist_ok=True)
    for name in ("SAMPLE_cot.jsonl", "SAMPLE_cot.manifest.json"):
        shutil.copy(place.shards / name, folder / name)
    tests = place.prepared / "tests"
    return [
        ["data_prepare", "--benchmark", "sample", "--post_process", "--output_dir", folder, "--test_dir", tests]
    ] * 2


def merge(place: Place, folder: Path) -> list[Command]:
    folder.mkdir(exist_ok=True)
    for path in place.shards.glob("*.shard-*"):
        shutil.copy(path, folder)
    return [["merge", "--input", place.records, "--output", folder / "SAMPLE_cot.jsonl", "--shards", 2]] * 2


CASES = {
    "enhance": enhance,
    "finetune": finetune,
    "evaluate": evaluate,
    "evaluate-shards": evaluate_shards,
    "prepare": prepare,
    "prepare-one-test-set": prepare_one_test_set,
    "post-process": post_process,
    "merge": merge,
}


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AtOnce]:
    with AtOnce(tmp_path_factory.mktemp("at-once")) as at_once:
        yield at_once


@pytest.fixture(scope="module")
def place(tiny_llama: Path, prepared: Path, at_once: AtOnce, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    place = Place(tiny_llama, prepared, prompts(folder / "SAMPLE.jsonl", RECORDS), folder / "shards")
    command = enhance(place, place.shards)[0]
    for more in ([], ["--shard", "0/2"], ["--shard", "1/2"]):
        codes, said = at_once.run([*command, *more])
        assert codes == [0], said
    return place


@pytest.fixture(scope="module")
def alone(
    place: Place, at_once: AtOnce, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, object]]:
    """The results of a case whose processes run one after the other."""
    made: dict[str, dict[str, object]] = {}

    def get(name: str) -> dict[str, object]:
        if name not in made:
            folder = tmp_path_factory.mktemp("alone") / name
            for command in CASES[name](place, folder):
                codes, said = at_once.run(command)
                assert codes == [0], said
            made[name] = contents(folder)
        return made[name]

    return get


def contents(folder: Path) -> dict[str, object]:
    """The relevant contents of a folder: the bytes of its files; of a finetuning, weights and log without times."""
    if (folder / "run").is_dir():
        listed = sorted(path.name for path in [*folder.iterdir(), *(folder / "run").iterdir()])
        return {"files": listed, "log": read_log(folder / "run"), "weights": weights(folder / "run")}
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.endswith("manifest.json"):
            manifest = json.loads(path.read_text())
            found[str(path.relative_to(folder))] = {name: manifest[name] for name in ("stage", "version", "arguments")}
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def repeat(name: str, times: int, place: Place, at_once: AtOnce, expected: dict[str, object], folder: Path) -> None:
    """Run a case repeatedly: with simultaneous and with delayed starts, and with one process killed and restarted."""
    draw = random.Random(name)
    for number in range(times):
        here = folder / str(number)
        commands = CASES[name](place, here)
        spread = (0.0, 0.05, 0.5)[number % 3]
        delays = [draw.uniform(0, spread) for _ in commands]
        kill = (draw.randrange(2), draw.uniform(0.05, 1.5)) if number % 4 == 3 else None
        codes, said = at_once.run(*commands, delays=delays, kill=kill)
        context = f"{name}, repetition {number}, delays {delays}, kill {kill}\n" + "\n--\n".join(said)
        assert {code for index, code in enumerate(codes) if not kill or index != kill[0]} == {0}, context
        if kill and codes[kill[0]] == -9:
            codes, said = at_once.run(commands[kill[0]])
            assert codes == [0], context + said[0]
            remove_leftovers(here)
        assert contents(here) == expected, context
        shutil.rmtree(here)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process may leave: its lock file, which the kernel has unlocked, and temporary files."""
    for path in [*folder.rglob(".*.lock"), *folder.rglob(".*.tmp-*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)  # gone with the folder that it was in


@pytest.mark.parametrize("name", CASES)
def test_at_once(name: str, place: Place, at_once: AtOnce, alone: Callable, tmp_path: Path) -> None:
    repeat(name, 4, place, at_once, alone(name), tmp_path)


def test_an_input_that_is_changed_meanwhile_is_not_joined_with_the_old_explanations(
    place: Place, at_once: AtOnce, tmp_path: Path
) -> None:
    """The prompts of two records change places while the teacher writes."""
    records, output = tmp_path / "SAMPLE.jsonl", tmp_path / "SAMPLE_cot.jsonl"
    shutil.copy(place.records, records)
    lines = records.read_text().splitlines(keepends=True)
    progress = tmp_path / f".{output.name}.progress"
    command = ["enhance", "--name", place.model, "--input", records, "--output", output, *TEXTS, "--num_tokens", 100]
    with ThreadPoolExecutor() as pool:
        running = pool.submit(at_once.run, command)
        while not progress.exists() or progress.read_bytes().count(b"\n") < 2:
            assert not running.done(), running.result()
            time.sleep(0.001)
        swapped = tmp_path / "swapped"
        swapped.write_text("".join([lines[1], lines[0], *lines[2:]]))
        swapped.replace(records)
        codes, said = running.result()
    assert codes == [2], said
    assert "is not the prompt that the teacher completed; the file was changed during the run" in said[0]
    assert not output.exists()
    codes, said = at_once.run([*command, "--restart"])
    assert codes == [0], said
    assert [record["ex_id"] for record in read_lines(output)][:2] == [json.loads(lines[n])["ex_id"] for n in (1, 0)]


def test_two_ranks_wait_for_another_process(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    """Only the first takes the lock, and neither waits in a collective that would run into its timeout."""
    with one_writer(tmp_path / "run"):
        ranks = start(tiny_llama, prepared / "SAMPLE", tmp_path, 2, "--num_train_epochs", 1)
        lines = itertools.takewhile(lambda line: not line.startswith("waiting for"), ranks.stdout)
        assert not any("samples of cot_text" in line for line in lines)
        assert ranks.poll() is None
        assert not (tmp_path / "run").exists()
    output, errors = ranks.communicate()
    assert ranks.returncode == 0, errors
    assert "24 samples of cot_text per epoch" in output
    assert [record["step"] for record in read_lines(tmp_path / "run" / "log.jsonl")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("name", CASES)
def test_at_once_a_hundred_times(name: str, place: Place, at_once: AtOnce, alone: Callable, tmp_path: Path) -> None:
    repeat(name, 100, place, at_once, alone(name), tmp_path)
