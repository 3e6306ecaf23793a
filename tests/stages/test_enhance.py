"""enhance.py: what it writes, how it survives a kill, and that a text depends on its record and seed alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.enhancing import edit_record, progress_of, prompts
from support.files import contents, read_lines
from support.programs import ROOT, STAGES, only_error, warm_python
from support.warm_python import kill

RECORDS = 40
SETTINGS = ["--task_type", "cot_text", "--num_tokens", "24", "--dtype", "float32", "--batch_size", "2", "--seed", "5"]


def words(teacher: Path, records: Path, output: Path) -> list[object]:
    return ["--name", teacher, "--input", records, "--output", output, *SETTINGS]


def new_tokens(output: Path) -> int:
    return json.loads(output.with_suffix(".manifest.json").read_text())["counts"]["new_tokens"]


@pytest.fixture(scope="module")
def done(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the records, the output of an uninterrupted run)."""
    folder = tmp_path_factory.mktemp("done")
    records, output = prompts(folder / "SAMPLE.jsonl", RECORDS), folder / "SAMPLE_cot.jsonl"
    command = [warm_python(), STAGES["enhance"], *words(tiny_llama, records, output)]
    subprocess.run(command, check=True, capture_output=True)
    return records, output


@pytest.fixture
def again(done: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of `done` that a test may change."""
    shutil.copytree(done[0].parent, tmp_path / "again")
    return tmp_path / "again" / "SAMPLE.jsonl", tmp_path / "again" / "SAMPLE_cot.jsonl"


def test_every_record_comes_back_in_order_with_the_completion_and_all(done: tuple[Path, Path]) -> None:
    records, enhanced = map(read_lines, done)
    assert [{k: v for k, v in record.items() if k not in ("cot", "all", "cot_ended")} for record in enhanced] == records
    assert [record["all"] for record in enhanced] == [record["cot_text"] + record["cot"] for record in enhanced]
    assert len({record["cot"] for record in enhanced}) == RECORDS  # each has a text of its own
    ended = json.loads(done[1].with_suffix(".manifest.json").read_text())["counts"]["ended"]
    assert sum(ended.values()) == RECORDS
    assert sum(record.get("cot_ended") == "length" for record in enhanced) == ended.get("length", 0) > 0
    assert sorted(path.name for path in done[1].parent.iterdir()) == [
        "SAMPLE.jsonl",
        "SAMPLE_cot.jsonl",
        "SAMPLE_cot.manifest.json",
    ]


def test_what_is_done_is_not_done_again(tiny_llama: Path, again: tuple[Path, Path], inside: Callable) -> None:
    before = contents(again[1].parent)
    result = inside("enhance", *words(tiny_llama, *again))
    assert (result.returncode, result.stderr) == (0, "")
    assert "done already, nothing to do" in result.stdout
    assert contents(again[1].parent) == before


def test_other_settings_are_refused_and_named(tiny_llama: Path, again: tuple[Path, Path], inside: Callable) -> None:
    before = contents(again[1].parent)
    error = only_error(inside("enhance", *words(tiny_llama, *again), "--seed", 6))
    assert "seed was 5, is 6" in error
    assert "--restart" in error
    assert contents(again[1].parent) == before


def test_restart_keeps_the_former_file(tiny_llama: Path, again: tuple[Path, Path], inside: Callable) -> None:
    before = again[1].read_bytes()
    assert inside("enhance", *words(tiny_llama, *again), "--seed", 6, "--restart").returncode == 0
    (kept,) = again[1].parent.glob("SAMPLE_cot.jsonl.old-*")
    assert kept.read_bytes() == before
    texts, others = ([record["cot"] for record in read_lines(path)] for path in (kept, again[1]))
    assert all(text != other for text, other in zip(texts, others, strict=True))


def test_killed_at_any_moment_it_ends_with_the_bytes_of_an_uninterrupted_run(
    tiny_llama: Path, done: tuple[Path, Path], tmp_path: Path, inside: Callable
) -> None:
    records, expected = done
    output = tmp_path / "SAMPLE_cot.jsonl"
    progress = progress_of(output)
    command = [warm_python(), STAGES["enhance"], *words(tiny_llama, records, output)]
    for _ in range(3):
        size = progress.stat().st_size if progress.exists() else 0
        wanted = size + random.randrange(1, 900)
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while killed.poll() is None and (not progress.exists() or progress.stat().st_size < wanted):
            time.sleep(0.002)
        assert kill(killed) == -signal.SIGKILL
        assert not output.exists()
    os.truncate(progress, progress.stat().st_size - random.randrange(1, 40))  # as a kill within a write leaves it
    finished = inside("enhance", *words(tiny_llama, records, output))
    assert finished.returncode == 0, finished.stderr
    assert "an interruption left the last line incomplete" in finished.stdout
    assert output.read_bytes() == expected.read_bytes()
    assert not progress.exists()
    assert 0 < new_tokens(output) < new_tokens(expected)  # what was done was not done again


def test_work_of_other_settings_that_made_nothing_is_no_obstacle(
    tiny_llama: Path, again: tuple[Path, Path], inside: Callable
) -> None:
    output = again[1]
    expected = output.read_bytes()
    output.unlink()
    output.with_suffix(".manifest.json").unlink()
    progress_of(output).write_text('{"work": {"seed": 4}}\n')
    assert inside("enhance", *words(tiny_llama, *again)).returncode == 0
    assert output.read_bytes() == expected


def test_progress_of_other_settings_is_not_continued(
    tiny_llama: Path, again: tuple[Path, Path], inside: Callable
) -> None:
    output = again[1]
    output.unlink()
    output.with_suffix(".manifest.json").unlink()
    progress = progress_of(output)
    progress.write_text('{"work": {"seed": 4}}\n{"key": 0, "text": "theirs", "tokens": 1}\n')
    before = progress.read_bytes()
    assert "begun with other settings" in only_error(inside("enhance", *words(tiny_llama, *again)))
    assert progress.read_bytes() == before
    assert not output.exists()


def without(name: str) -> Callable[[dict], None]:
    return lambda record: record.pop(name)


BAD_RECORDS = {
    "missing": (without("cot_text"), "line 7: the field 'cot_text' is missing", "has error_text, fundamental_text"),
    "empty": (lambda record: record.update(cot_text=""), "line 7: the field 'cot_text' is missing, empty", "has cot"),
    "taken": (lambda record: record.update(cot="mine"), "line 7: the field 'cot' is already there", "rename"),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_a_bad_record_7_is_named_and_earlier_results_stay(
    kind: str, tiny_llama: Path, again: tuple[Path, Path], inside: Callable
) -> None:
    change, place, help_ = BAD_RECORDS[kind]
    edit_record(again[0], 7, change)
    before = contents(again[1].parent)
    error = only_error(inside("enhance", *words(tiny_llama, *again), "--restart"))
    assert place in error
    assert help_ in error
    assert contents(again[1].parent) == before


def test_a_missing_teacher_is_named_with_its_near_names(again: tuple[Path, Path], inside: Callable) -> None:
    before = contents(again[1].parent)
    assert "bloomz-7b1" in only_error(inside("enhance", *words(Path("bloomz-7b"), *again)))
    assert "no such folder" in only_error(inside("enhance", *words(Path("/nowhere/teacher"), *again)))
    assert contents(again[1].parent) == before


def test_a_folder_that_cannot_be_written_is_named(tiny_llama: Path, done: tuple[Path, Path], inside: Callable) -> None:
    for folder in (done[0] / "below", Path("/proc/sys/kernel/teacherlm")):
        assert f"{folder}: cannot be written" in only_error(
            inside("enhance", *words(tiny_llama, done[0], folder / "out.jsonl"))
        )


def test_enhance_sh_takes_positional_arguments_with_any_characters(
    tiny_llama: Path, done: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / """it's "a" $(touch pwned) `touch pwned` *"""
    shutil.copytree(tiny_llama, folder / "my teacher")
    records, output = prompts(folder / "in put.jsonl", RECORDS), folder / "out put.jsonl"
    command = ["bash", ROOT / "enhance" / "enhance.sh", folder / "my teacher", records, output, *SETTINGS[1:]]
    environment = {**os.environ, "PYTHON": warm_python()}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert output.read_bytes() == done[1].read_bytes()
    assert not list(tmp_path.rglob("pwned"))


def test_explanations_that_people_wrote_are_taken_from_their_field(tmp_path: Path, inside: Callable) -> None:
    records = prompts(tmp_path / "SAMPLE.jsonl", 5)
    output = tmp_path / "SAMPLE_cot.jsonl"
    command = ["--name", "field:sentence", "--input", records, "--output", output, "--task_type", "cot_text"]
    result = inside("enhance", *command)
    assert result.returncode == 0, result.stderr
    assert len(read_lines(output)) == 5
    for record in read_lines(output):
        assert record["cot"] == " " + record["sentence"].strip()
        assert record["all"] == record["cot_text"] + record["cot"]
    edit_record(records, 3, lambda record: record.update({"sentence": " "}))
    result = inside("enhance", *command, "--restart")
    assert result.returncode == 2
    assert "line 3: the field 'sentence' has no text" in result.stderr
