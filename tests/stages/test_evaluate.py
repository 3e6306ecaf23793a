"""main.py: log-likelihoods are the reference's, the statistics are right, and what is scored is not scored again."""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from support.files import contents, read_lines
from support.programs import ROOT, warm_python
from support.scoring import reference_likelihoods, words
from transformers import AutoModelForCausalLM


def check_against_reference(folder: Path, samples: list[dict], test_set: list[dict]) -> None:
    prompts = [f"Q: {sample['question']} A: The answer is (" for sample in test_set]
    assert [sample["prompt"] for sample in samples] == prompts
    for ours, theirs, sample in zip(samples, reference_likelihoods(folder, prompts, ["A", "B"]), test_set, strict=True):
        assert ours["loglikelihoods"] == pytest.approx(theirs, abs=1e-4)
        assert ours["choice"] == max(theirs, key=theirs.get)
        assert ours["acc"] == (f"({ours['choice']})" == sample["answer"])


def test_likelihoods_are_those_of_the_reference_s_loop(
    tiny_model: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    tests = prepared / "tests"
    assert inside("evaluate", *words(tiny_model, "sample", tests, tmp_path, "--limit", 20)).returncode == 0
    samples = read_lines(tmp_path / tiny_model.name / "sample_samples.jsonl")
    check_against_reference(tiny_model, samples, list(datasets.load_from_disk(str(tests / "sample")))[:20])


def test_real_weights_on_real_creak_score_as_the_reference_s_loop(
    smollm2: Path, shared_data: Path, tmp_path: Path, inside: Callable
) -> None:
    tests = shared_data / "teacherlm_eval"
    assert inside("evaluate", *words("smollm2-135m", "creak", tests, tmp_path, "--limit", 21)).returncode == 0
    samples = read_lines(tmp_path / "smollm2-135m" / "creak_samples.jsonl")
    assert {sample["choice"] for sample in samples} == {"A", "B"}
    rows = list(datasets.load_from_disk(str(tests / "creak")))[:21]
    check_against_reference(smollm2, samples[9:], rows[9:])  # the reference's loop takes a second for each


def test_accuracy_error_and_interval_are_those_computed_by_hand(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    result = inside("evaluate", *words(tiny_llama, "sample", prepared / "tests", tmp_path))
    written = json.loads((tmp_path / "tiny" / "sample.json").read_text())
    samples = read_lines(tmp_path / "tiny" / "sample_samples.jsonl")
    right = [sample["choice"] == sample["gold"] for sample in samples]
    n, p, z = len(right), sum(right) / len(right), 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert n == written["n"] == 80
    assert written["value"] == pytest.approx(p)
    assert written["stderr"] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert written["interval_95"] == pytest.approx([(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)])
    assert f"| {p:.4f} | ± {written['stderr']:.4f} |" in result.stdout


def test_one_sample_has_no_standard_error(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    result = inside("evaluate", *words(tiny_llama, "sample", prepared / "tests", tmp_path, "--limit", 1))
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "tiny" / "sample.json").read_text())["stderr"] is None


def test_every_task_loads_with_its_number_of_choices(
    tiny_llama: Path, shared_data: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    tests = tmp_path / "tests"
    shutil.copytree(shared_data / "teacherlm_eval", tests)
    tests.chmod(0o755)
    shutil.copytree(prepared / "tests" / "sample", tests / "sample")  # a benchmark without a task file
    result = inside("evaluate", *words(tiny_llama, "creak,ecqa,strategy_qa,sample", tests, tmp_path, "--limit", 3))
    assert result.returncode == 0, result.stderr
    for task, choices in {"creak": "AB", "ecqa": "ABCDE", "strategy_qa": "AB", "sample": "AB"}.items():
        samples = read_lines(tmp_path / "tiny" / f"{task}_samples.jsonl")
        assert [list(sample["loglikelihoods"]) for sample in samples] == [list(choices)] * 3


@pytest.fixture
def run_folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A run with two checkpoints whose names sort differently from their steps."""
    for step in (10, 2):
        shutil.copytree(tiny_llama, tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


def test_checkpoints_are_scored_in_step_order_and_only_when_changed(
    tiny_llama: Path, prepared: Path, run_folder: Path, tmp_path: Path, inside: Callable
) -> None:
    output = tmp_path / "results"
    command = words(tiny_llama, "sample", prepared / "tests", output, "--checkpoints", run_folder, "--limit", 4)
    first = inside("evaluate", *command).stdout
    assert [line.split()[1] for line in first.splitlines() if line.startswith("evaluate: ")] == [
        "tiny",
        "run/checkpoint-2",
        "run/checkpoint-10",
    ]
    before = contents(output)

    assert inside("evaluate", *command).stdout.count("done already, nothing to do") == 3
    assert contents(output) == before

    model = AutoModelForCausalLM.from_pretrained(run_folder / "checkpoint-10")
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(run_folder / "checkpoint-10")
    assert inside("evaluate", *command).stdout.count("done already, nothing to do") == 2
    after = contents(output)
    assert {name for name in after if after[name] != before[name]} == {
        f"run/checkpoint-10/{name}" for name in ("sample.json", "sample.manifest.json", "sample_samples.jsonl")
    }


@pytest.mark.parametrize("script", ["run_bloom.sh", "run_opt.sh", "run_hf.sh"])
def test_run_scripts_take_model_and_task_with_any_characters(
    script: str, tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    folder = tmp_path / """it's "a" $(touch pwned) `touch pwned` *"""
    model, output = shutil.copytree(tiny_llama, folder / "my model"), folder / "results"
    more = ["--limit", 3]
    assert inside("evaluate", *words(model, "sample", prepared / "tests", output, *more)).returncode == 0
    command = ["bash", ROOT / "evaluate" / script, model, "sample", "--datasets", prepared / "tests"]
    again = subprocess.run(
        [*map(str, command), "--output_path", str(output), *map(str, more)],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": warm_python()},
        capture_output=True,
        text=True,
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert "my model on sample: done already, nothing to do" in again.stdout
    assert not list(tmp_path.rglob("pwned"))


def test_intervals_are_drawn_to_scale() -> None:
    from teacherlm.core.tables import draw_intervals

    head, first, second = draw_intervals([("a", 0.0, 0.5, 1.0), ("checkpoint-2", 0.5, 0.75, 1.0)]).splitlines()
    assert head.split() == ["0.0000", "1.0000"]
    begin = len("checkpoint-2") + 2
    assert first[begin:] == "-" * 24 + "o" + "-" * 25
    assert second[begin:] == " " * 24 + "-" * 13 + "o" + "-" * 12
    assert len(head) == begin + 50
