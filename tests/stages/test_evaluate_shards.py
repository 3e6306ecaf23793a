"""Processes that split the questions, or that are killed, end with the same files as one process, byte for byte."""

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import ROOT, STAGES, warm_python
from support.scoring import words
from support.shards import results
from support.warm_python import kill

TASKS = "sample"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Flags that split the 80 questions into about 27 batches."""
    return ["--batch_size", 3]


@pytest.fixture
def alone(tiny_llama: Path, prepared: Path, tmp_path: Path, small_batches: list[object], inside: Callable) -> Path:
    output = tmp_path / "alone"
    result = inside("evaluate", *words(tiny_llama, TASKS, prepared / "tests", output, *small_batches))
    assert result.returncode == 0, result.stderr
    return output


def test_four_shards_in_any_order(
    alone: Path, tiny_llama: Path, prepared: Path, tmp_path: Path, small_batches: list[object], inside: Callable
) -> None:
    output = tmp_path / "shared"
    command = words(tiny_llama, TASKS, prepared / "tests", output, *small_batches)
    for index in (2, 0, 3):
        done = inside("evaluate", *command, "--shard", f"{index}/4")
        assert done.returncode == 0, done.stderr
        assert f"shard {index}/4 is done" in done.stdout
        assert not (output / "tiny" / "sample.json").exists()
    last = inside("evaluate", *command, "--shard", "1/4")
    assert last.returncode == 0, last.stderr
    assert results(output) == results(alone)
    assert "done already" in inside("evaluate", *command, "--shard", "3/4").stdout


def test_two_processes_of_the_script(
    alone: Path, tiny_llama: Path, prepared: Path, tmp_path: Path, small_batches: list[object]
) -> None:
    output = tmp_path / "two"
    command = ["bash", ROOT / "evaluate" / "run_hf.sh", tiny_llama, TASKS, "--datasets", prepared / "tests"]
    command += ["--output_path", output, *small_batches]
    environment = {**os.environ, "PYTHON": warm_python(), "NUM_GPUS": "2"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert results(output) == results(alone)


def test_the_script_ends_all_when_one_fails(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    command = ["bash", ROOT / "evaluate" / "run_hf.sh", tiny_llama, "creak", "--datasets", prepared / "tests"]
    environment = {**os.environ, "PYTHON": warm_python(), "NUM_GPUS": "2"}
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "the test set of creak is missing" in done.stderr


def test_killed_and_started_again_nothing_is_scored_twice_or_lost(
    alone: Path, tiny_llama: Path, prepared: Path, tmp_path: Path, small_batches: list[object], inside: Callable
) -> None:
    output = tmp_path / "killed"
    command = words(tiny_llama, TASKS, prepared / "tests", output, *small_batches)
    progress = output / "tiny" / ".sample.shard-0-of-1.progress"
    draw = random.Random(0)
    counts = []
    for batches in (1, 9, 20):
        process = subprocess.Popen([warm_python(), STAGES["evaluate"], *map(str, command)], stdout=subprocess.DEVNULL)
        while process.poll() is None and lines_of(progress) <= batches:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.005))
        kill(process)
        if not progress.exists():  # it was faster
            break
        keys = Counter(json.loads(line).get("key") for line in whole_lines(progress)[1:])
        assert set(keys.values()) <= {1}
        counts.append(len(keys))
    assert counts == sorted(counts)
    assert counts[0] > 0
    last = inside("evaluate", *command)
    assert last.returncode == 0, last.stderr
    assert "; continuing with the others" in last.stdout
    assert results(output) == results(alone)


def whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def lines_of(path: Path) -> int:
    return len(whole_lines(path)) if path.exists() else 0


def test_other_settings_do_not_use_what_was_scored_before(
    tiny_llama: Path, prepared: Path, tmp_path: Path, small_batches: list[object], inside: Callable
) -> None:
    command = words(tiny_llama, TASKS, prepared / "tests", tmp_path, *small_batches)
    assert inside("evaluate", *command, "--shard", "0/2").returncode == 0
    other = inside("evaluate", *command, "--dtype", "bfloat16", "--shard", "1/2")
    assert "shard 1/2 is done; " in other.stdout
    assert not (tmp_path / "tiny" / "sample.json").exists()
