"""MMLU by subject, group and average; few-shot examples; what is missing or wrong is named."""

import csv
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from support.files import contents, read_lines
from support.programs import STAGES, only_error, warm_python
from support.scoring import words

from teacherlm.catalog.benchmarks import load_benchmark

SUBJECTS = {"anatomy": "other", "astronomy": "stem", "formal_logic": "humanities", "virology": "other"}


@pytest.fixture(scope="module")
def mmlu(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test sets with the first questions of four subjects, enough of them for the averages to differ."""
    source, tests = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("tests")
    for count, subject in enumerate(SUBJECTS, start=3):
        for split in ("dev", "test"):
            (source / split).mkdir(exist_ok=True)
            with open(shared_data / "mmlu" / split / f"{subject}_{split}.csv", newline="") as file:
                rows = list(csv.reader(file))[: count if split == "test" else 5]
            with open(source / split / f"{subject}_{split}.csv", "w", newline="") as file:
                csv.writer(file).writerows(rows)
    command = [warm_python(), STAGES["data_prepare"], "--benchmark", "mmlu", "--test_only", "--data", source]
    for said in ("test samples", "done already"):
        done = subprocess.run([*command, "--test_dir", tests], check=True, capture_output=True, text=True)
        assert said in done.stdout
    return tests


def test_groups_have_each_of_the_57_subjects_once(shared_data: Path) -> None:
    groups = load_benchmark("mmlu").groups
    subjects = sorted(path.name.removesuffix("_test.csv") for path in (shared_data / "mmlu" / "test").iterdir())
    assert sorted(subject for values in groups.values() for subject in values) == subjects
    assert {name: len(values) for name, values in groups.items()} == {
        "stem": 18,
        "humanities": 13,
        "social_sciences": 12,
        "other": 14,
    }


def test_averages_are_those_computed_by_hand(tiny_llama: Path, mmlu: Path, tmp_path: Path, inside: Callable) -> None:
    result = inside("evaluate", *words(tiny_llama, "mmlu", mmlu, tmp_path))
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "tiny" / "mmlu.json").read_text())
    samples = read_lines(tmp_path / "tiny" / "mmlu_samples.jsonl")
    right: dict[str, list[bool]] = {subject: [] for subject in SUBJECTS}
    for sample in samples:
        right[sample["task"].removeprefix("mmlu_")].append(sample["choice"] == sample["gold"])
    assert {subject: len(values) for subject, values in right.items()} == dict(zip(SUBJECTS, (3, 4, 5, 6)))
    means = {subject: sum(values) / len(values) for subject, values in right.items()}
    assert {part["task"]: part["value"] for part in written["tasks"]} == {
        f"mmlu_{subject}": mean for subject, mean in means.items()
    }
    assert written["value"] == pytest.approx(sum(map(sum, right.values())) / 18)
    assert written["macro"] == pytest.approx(sum(means.values()) / 4)
    other = right["anatomy"] + right["virology"]
    assert written["groups"]["other"]["value"] == pytest.approx(sum(other) / 9)
    assert written["groups"]["other"]["macro"] == pytest.approx((means["anatomy"] + means["virology"]) / 2)
    assert set(written["groups"]) == {"other", "stem", "humanities"}
    assert "mmlu: humanities" in result.stdout


@pytest.mark.parametrize(("task", "count"), [("mmlu_stem", 4), ("mmlu_virology", 6), ("mmlu_other", 9)])
def test_a_group_or_a_subject_alone(
    task: str, count: int, tiny_llama: Path, mmlu: Path, tmp_path: Path, inside: Callable
) -> None:
    result = inside("evaluate", *words(tiny_llama, task, mmlu, tmp_path))
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "tiny" / f"{task}.json").read_text())["n"] == count


def test_few_shot_examples_are_the_subjects_own(tiny_llama: Path, mmlu: Path, tmp_path: Path, inside: Callable) -> None:
    prompts = {}
    for seed in (0, 1):
        output = tmp_path / str(seed)
        command = words(tiny_llama, "mmlu_anatomy", mmlu, output, "--num_fewshot", 3, "--seed", seed)
        assert inside("evaluate", *command).returncode == 0
        prompts[seed] = [sample["prompt"] for sample in read_lines(output / "tiny" / "mmlu_anatomy_samples.jsonl")]
    pool = [row for row in datasets.load_from_disk(str(mmlu / "mmlu" / "fewshot")) if row["subject"] == "anatomy"]
    assert len(pool) == 5
    shots = [f"{row['preamble']}Q: {row['question']} A: The answer is {row['answer']}." for row in pool]
    for prompt in prompts[0]:
        *examples, question = prompt.split("\n\n")
        assert examples == shots[:3]
        assert question.startswith("The following are multiple choice questions (with answers) about anatomy. Q: ")
        assert question.endswith(" A: The answer is (")
    assert prompts[0] != prompts[1]
    assert set(prompts[1][0].split("\n\n")[:-1]) < set(shots)
    error = only_error(inside("evaluate", *words(tiny_llama, "mmlu_anatomy", mmlu, tmp_path, "--num_fewshot", 6)))
    assert "--num_fewshot 6: mmlu_anatomy has only 5 examples" in error


def test_checkpoints_that_are_not_whole_are_named_and_new_ones_waited_for(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for step in (1, 2, 3):
        shutil.copytree(tiny_llama, run / f"checkpoint-{step}")
    torn = run / "checkpoint-2" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    (run / "checkpoint-3" / "config.json").rename(run / "config.json")

    def finetune() -> None:
        while not (tmp_path / "results" / "run" / "checkpoint-1" / "sample.json").exists():
            time.sleep(0.01)
        (run / "config.json").rename(run / "checkpoint-3" / "config.json")  # it was being copied
        shutil.copytree(tiny_llama, run / "late")
        (run / "late").rename(run / "checkpoint-4")
        (run / "manifest.json").write_text("{}")

    thread = threading.Thread(target=finetune)
    thread.start()
    command = words(tiny_llama, "sample", prepared / "tests", tmp_path / "results", "--limit", 2)
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.05)))
    result = inside("evaluate", *command, "--checkpoints", run, "--watch")
    thread.join()
    assert "run/checkpoint-2 is not scored: it is incomplete: model.safetensors: " in only_error(result)
    scored = {path.parent.name for path in (tmp_path / "results" / "run").glob("*/sample.json")}
    assert scored == {"checkpoint-1", "checkpoint-3", "checkpoint-4"}


def test_swapped_weights_give_the_numbers_of_loaded_ones(
    tiny_model: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = tmp_path / "run" / "checkpoint-5"
    shutil.copytree(tiny_model, checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        for part in model.parameters():
            part += torch.randn_like(part) / 10
    model.save_pretrained(checkpoint)
    tests = prepared / "tests"
    both = words(tiny_model, "sample", tests, tmp_path / "both", "--limit", 9, "--checkpoints", tmp_path / "run")
    assert inside("evaluate", *both).returncode == 0
    assert inside("evaluate", *words(checkpoint, "sample", tests, tmp_path / "alone", "--limit", 9)).returncode == 0
    swapped, loaded = (
        read_lines(tmp_path / folder / "checkpoint-5" / "sample_samples.jsonl") for folder in ("both/run", "alone/run")
    )
    assert swapped == loaded
    assert swapped != read_lines(tmp_path / "both" / tiny_model.name / "sample_samples.jsonl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "(C)"}, "sample 1: the answer is '(C)'; one of (A) to (B) was expected"),
        ({"answer": None}, "sample 1: the answer is 'None'; one of (A) to (B) was expected"),
        ({"question": " "}, "sample 1: the question is ' '; a text was expected"),
        ({"question": None}, "sample 1: the question is 'None'; a text was expected"),
        ("drop", "its samples have no field 'answer'; they have: "),
        ("empty", "there are no samples in it"),
    ],
    ids=str,
)
def test_a_mistake_in_a_test_set_is_named(
    change: object, said: str, tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    rows = datasets.load_from_disk(str(prepared / "tests" / "sample"))
    if change == "drop":
        rows = rows.remove_columns("answer")
    elif change == "empty":
        rows = rows.select([])
    else:
        rows = datasets.Dataset.from_list([rows[0], {**rows[1], **change}, rows[2]])
    rows.save_to_disk(str(tmp_path / "tests" / "sample"))
    before = contents(tmp_path)
    error = only_error(inside("evaluate", *words(tiny_llama, "sample", tmp_path / "tests", tmp_path / "results")))
    assert f"{tmp_path / 'tests' / 'sample'}" in error
    assert said in error
    assert contents(tmp_path) == before
