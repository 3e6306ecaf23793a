"""Task files: one in the reference's API runs unchanged, and a broken one is named."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from support.files import contents, read_lines
from support.programs import ROOT, only_error, warm_python
from support.scoring import reference_likelihoods, words
from transformers import AutoTokenizer

from teacherlm.scoring import task_files

OLD_TASK = '''"""A task as it was written for lm-eval 0.3."""
import datasets
import numpy as np
from lm_eval.base import rf, Task
from lm_eval.metrics import mean

class Weather(Task):
    VERSION = 0
    DATASET_PATH = "lm_eval/datasets/weather"
    DATASET_NAME = None

    def download(self, data_dir=None, cache_dir=None, download_mode=None):
        self.dataset = datasets.load_from_disk(self.DATASET_PATH)

    def has_training_docs(self):
        return False

    def has_validation_docs(self):
        return False

    def has_test_docs(self):
        return True

    def test_docs(self):
        return self.dataset

    def doc_to_text(self, doc):
        return doc["question"]

    def doc_to_target(self, doc):
        return doc["answer"]

    def construct_requests(self, doc, ctx):
        ll_from, _ = rf.loglikelihood(ctx, "rom Bergen")
        ll_for, _ = rf.loglikelihood(ctx, "or today")
        return ll_from, ll_for

    def process_results(self, doc, results):
        return {"acc": float(["rom Bergen", "or today"][np.argmax(results)] == doc["answer"])}

    def aggregation(self):
        return {"acc": mean}

    def higher_is_better(self):
        return {"acc": True}
'''


def test_a_task_in_the_reference_s_api_runs_unchanged_and_is_tokenized_apart(tiny_llama: Path, tmp_path: Path) -> None:
    evaluate = tmp_path / "evaluate"
    shutil.copytree(ROOT / "evaluate", evaluate, ignore=shutil.ignore_patterns("datasets", "results", "__pycache__"))
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("benchmarks", "models", "prompts", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    (evaluate / "lm_eval" / "tasks" / "weather.py").write_text(OLD_TASK)
    questions = ["The rain is f", "The forecast is f", "The wind is f"]  # a choice ends the last word
    choices, answers = ["rom Bergen", "or today"], ["rom Bergen", "or today", "rom Bergen"]
    test_set = Dataset.from_dict({"question": questions, "answer": answers})
    test_set.save_to_disk(str(evaluate / "lm_eval" / "datasets" / "weather"))

    command = ["bash", "run_hf.sh", str(tiny_llama), "weather", "--tokenization", "apart"]
    environment = {**os.environ, "PYTHON": warm_python()}
    result = subprocess.run(command, cwd=evaluate, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    samples = read_lines(evaluate / "results" / "tiny" / "weather_samples.jsonl")
    apart = [AutoTokenizer.from_pretrained(tiny_llama).tokenize(text) for text in (questions[0], choices[0])]
    assert AutoTokenizer.from_pretrained(tiny_llama).tokenize(questions[0] + choices[0]) != apart[0] + apart[1]
    expected = reference_likelihoods(tiny_llama, questions, choices)
    for sample, likelihoods, answer in zip(samples, expected, answers, strict=True):
        assert sample["loglikelihoods"] == pytest.approx(likelihoods, abs=1e-4)
        assert sample["acc"] == (max(likelihoods, key=likelihoods.get) == answer)


def test_a_request_has_two_parts_the_sum_and_whether_it_is_greedy(
    tiny_llama: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = OLD_TASK.replace("ll_for, _ =", "_, greedy =").replace("ll_from, ll_for", "ll_from, greedy")
    source = source.replace(
        "        return {", '        return {"acc": float(results[0] < 0 and results[1] is False)}\n        {', 1
    )
    (tmp_path / "weather.py").write_text(source)
    Dataset.from_dict({"question": ["The rain is f"], "answer": ["or today"]}).save_to_disk(str(tmp_path / "weather"))
    monkeypatch.setattr(task_files, "TASKS", tmp_path)
    assert inside("evaluate", *words(tiny_llama, "weather", tmp_path, tmp_path / "results")).returncode == 0
    assert read_lines(tmp_path / "results" / "tiny" / "weather_samples.jsonl")[0]["acc"] == 1


def broken_method(source: str) -> str:
    return source.replace("def process_results(self", "def results(self")


BROKEN = {
    "syntax": (lambda source: source.replace("return True", "return (True"), "weather.py, line 22: "),
    "method": (broken_method, "weather.py: the class Weather lacks process_results"),
    "import": (lambda source: "import no_such_module\n" + source, "weather.py cannot be imported: ModuleNotFoundError"),
    "no task": (lambda source: "import datasets\n", "weather.py: no class that is derived from lm_eval.base.Task"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_task_file_is_named(
    kind: str, tiny_llama: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, expected = BROKEN[kind]
    (tmp_path / "weather.py").write_text(change(OLD_TASK))
    monkeypatch.setattr(task_files, "TASKS", tmp_path)
    error = only_error(inside("evaluate", *words(tiny_llama, "weather", tmp_path, tmp_path / "results")))
    assert str(tmp_path / expected) in error


def test_a_task_without_an_accuracy_is_scored_by_what_it_has(
    tiny_llama: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weather.py").write_text(OLD_TASK.replace('"acc"', '"hits"'))
    Dataset.from_dict({"question": ["The rain is f"], "answer": ["or today"]}).save_to_disk(str(tmp_path / "weather"))
    monkeypatch.setattr(task_files, "TASKS", tmp_path)
    result = inside("evaluate", *words(tiny_llama, "weather", tmp_path, tmp_path / "results"))
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "results" / "tiny" / "weather.json").read_text())
    assert (written["metric"], written["value"]) == ("hits", written["correct"])


def test_an_unknown_task_lists_the_near_ones(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    for name in ("stategy_qa", "strategyqa"):
        error = only_error(inside("evaluate", *words(tiny_llama, name, tmp_path, tmp_path / "results")))
        assert f"no task {name!r}; did you mean strategy_qa" in error
    error = only_error(inside("evaluate", *words(tiny_llama, "nonesuch_*", tmp_path, tmp_path / "results")))
    assert "no task matches 'nonesuch_*'; there are: creak, ecqa, " in error
    none = inside("evaluate", *words(tiny_llama, ",", tmp_path, tmp_path / "results"))
    assert "--tasks: at least one name" in only_error(none)


def test_a_task_of_the_library_needs_the_hub(
    tiny_llama: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    error = only_error(inside("evaluate", *words(tiny_llama, "arc_easy", tmp_path, tmp_path / "results")))
    assert "the task arc_easy of lm-eval cannot be loaded: " in error


def test_a_missing_test_set_names_the_command_that_makes_it(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    error = only_error(inside("evaluate", *words(tiny_llama, "creak", tmp_path / "none", tmp_path / "results")))
    assert f"{tmp_path / 'none' / 'creak'}: the test set of creak is missing" in error
    assert "python3 enhance/data_prepare.py --benchmark creak" in error


def test_a_test_set_without_answers_is_named_and_earlier_results_stay(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    tests, output = shutil.copytree(prepared / "tests", tmp_path / "tests"), tmp_path / "results"
    command = words(tiny_llama, "sample", tests, output, "--limit", 2)
    inside("evaluate", *command)
    before = contents(output)
    shutil.rmtree(tests / "sample")
    Dataset.from_dict({"question": ["Is it?"]}).save_to_disk(str(tests / "sample"))
    error = only_error(inside("evaluate", *command))
    assert f"{tests / 'sample'}: its samples have no field 'answer'; they have: question" in error
    assert contents(output) == before


def test_a_missing_model_or_run_is_named(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    tests, output = prepared / "tests", tmp_path / "results"
    assert "bloomz-7b1" in only_error(inside("evaluate", *words(Path("bloomz-7b"), "sample", tests, output)))
    command = words(tiny_llama, "sample", tests, output, "--checkpoints", tmp_path / "run")
    assert "no checkpoint-N there" in only_error(inside("evaluate", *command))
