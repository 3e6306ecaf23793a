"""A record without a text costs only a line in a list, and a kill costs nothing."""

import contextlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.enhancing import edit_record, progress_of, prompts
from support.failed_records import failures_of, last_error
from support.files import contents, read_lines
from support.greedy import greedy_tokens
from support.programs import STAGES, warm_python
from support.warm_python import kill
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.core import manifests


def words(teacher: Path, records: Path, output: Path, *more: object) -> list[object]:
    settings = ["--task_type", "cot_text", "--num_tokens", 16, "--dtype", "float32", "--batch_size", 4, "--seed", 5]
    return ["--name", teacher, "--input", records, "--output", output, *settings, *more]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """12 records; the model's window is too short for the cot_text of the 7th."""
    path = prompts(tmp_path / "SAMPLE.jsonl", 12)
    edit_record(path, 7, lambda record: record.update(cot_text="moon " * 600))
    return path


def test_a_record_without_a_text_is_listed_and_the_rest_is_kept(
    tiny_llama: Path, records: Path, tmp_path: Path, inside: Callable
) -> None:
    output = tmp_path / "SAMPLE_cot.jsonl"
    command = words(tiny_llama, records, output)
    error = last_error(inside("enhance", *command))
    assert f"1 record got no cot (--max_failures 0), the first in {records}, line 7: the prompt has 12" in error
    assert "the model's window is 512" in error
    (failure,) = failures_of(output)
    assert (failure["record"], failure["line"]) == (6, 7)
    assert failure["reason"] in error
    assert not output.exists()
    kept = read_lines(progress_of(output))[1:]
    assert sorted(row["key"] for row in kept) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]

    allowed = inside("enhance", *command, "--max_failures", 1)
    assert allowed.returncode == 0, allowed.stderr
    assert "an earlier run made 11 of 12 completions" in allowed.stdout
    texts, ended = ({row["key"]: row[name] for row in kept} for name in ("text", "ended"))
    others = [(key, record) for key, record in enumerate(read_lines(records)) if key != 6]
    for (key, record), made in zip(others, read_lines(output), strict=True):
        assert made.pop("cot_ended", "stop") == ended[key]
        assert made == {**record, "cot": texts[key], "all": record["cot_text"] + texts[key]}
    counts = manifests.read_manifest(manifests.manifest_of(output))["counts"]
    assert (counts["records"], counts["failures"]) == (11, 1)

    before = output.read_bytes()
    again = inside("enhance", *command, "--max_failures", 1)
    assert again.returncode == 0, again.stderr
    assert "trying 1 record without a text again" in again.stdout
    assert output.read_bytes() == before
    assert failures_of(output) == [failure]


def test_a_failure_of_one_kind_does_not_hold_back_the_others(
    tiny_llama: Path, records: Path, tmp_path: Path, inside: Callable
) -> None:
    several = words(tiny_llama, records, tmp_path / "X_{kind}.jsonl", "--task_type", "cot_text,error_text")
    assert "got no cot" in last_error(inside("enhance", *several))
    assert not (tmp_path / "X_cot.jsonl").exists()
    assert len(read_lines(tmp_path / "X_error.jsonl")) == 12
    assert not (tmp_path / "X_error.failures.jsonl").exists()


def test_an_empty_completion_is_a_failure(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 12), tmp_path / "SAMPLE_cot.jsonl"
    firsts = [greedy_tokens(tiny_llama, record["cot_text"], 1)[0] for record in read_lines(records)]
    teacher, end = tmp_path / "teacher", firsts[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    model.generation_config.eos_token_id = end
    for part in (model, tokenizer):
        part.save_pretrained(teacher)

    error = last_error(inside("enhance", *words(teacher, records, output, "--temperature", 0)))
    assert "line 1: the completion is empty" in error
    assert {row["reason"] for row in failures_of(output)} == {"the completion is empty"}
    assert [row["record"] for row in failures_of(output)] == [i for i, first in enumerate(firsts) if first == end]


# ---------------------------------------------------------------------------------------------------------- SIGKILL


def start(command: list[object]) -> subprocess.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([warm_python(), STAGES["enhance"], *map(str, command)], **quiet)


@pytest.mark.parametrize("times", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_file_is_that_of_an_uninterrupted_run(
    times: int, tiny_llama: Path, tmp_path: Path
) -> None:
    """A run that ended before the kill is checked and started again, so that its last moments are tested too."""
    records = prompts(tmp_path / "SAMPLE.jsonl", 40)
    expected, output = tmp_path / "expected" / "X.jsonl", tmp_path / "killed" / "X.jsonl"
    seconds = 0.0
    for whole in (tmp_path / "warm up" / "X.jsonl", expected):
        began = time.monotonic()
        assert start(words(tiny_llama, records, whole)).wait() == 0
        seconds = time.monotonic() - began

    kills = finished = 0
    while kills < times or not finished:
        run = start(words(tiny_llama, records, output))
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(random.uniform(0, seconds) if kills < times else None)
        status = kill(run)
        assert status in (0, -signal.SIGKILL)
        if status:
            kills += 1
        else:
            finished += 1
            assert output.read_bytes() == expected.read_bytes()
            assert not list(output.parent.glob("*.old-*"))
            shutil.rmtree(output.parent)


def test_a_kill_between_the_output_and_its_manifest_costs_nothing(
    tiny_llama: Path, records: Path, tmp_path: Path, inside: Callable
) -> None:
    output = tmp_path / "made" / "X.jsonl"
    command = words(tiny_llama, records, output, "--max_failures", 1)
    assert inside("enhance", *command).returncode == 0
    before = contents(output.parent)
    manifests.manifest_of(output).unlink()  # what is there now is what such a kill leaves
    result = inside("enhance", *command)
    assert result.returncode == 0, result.stderr
    assert output.read_bytes() == before[output.name][0]
    assert contents(output.parent).keys() == before.keys()
