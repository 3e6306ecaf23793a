"""Task files in the API of lm-eval 0.2 and 0.3 run unchanged, with the numbers that their code means."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.files import read_lines
from support.old_task_scores import score
from support.programs import ROOT, only_error
from support.scoring import reference_likelihoods
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.scoring import evaluator as scoring

NEW_TASK = ROOT / "evaluate" / "lm_eval" / "tasks" / "new_task.py"


def test_choices_of_one_token(
    tiny_model: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "BOOTSTRAPS", 10)
    result, samples = score(inside, tiny_model, "weather", tmp_path)
    labels = [1, 0, 1, 0]
    theirs = reference_likelihoods(tiny_model, [sample["prompt"] for sample in samples], [" yes", " no"])
    right = [(row[" yes"] > row[" no"]) == bool(label) for row, label in zip(theirs, labels, strict=True)]
    for sample, row in zip(samples, theirs):
        assert sample["loglikelihoods"] == pytest.approx(row, abs=1e-4)
    assert (result["n"], result["correct"], result["value"]) == (4, sum(right), sum(right) / 4)
    assert samples[0]["prompt"] == "The sky is grey.\nQuestion: Will it rain?\nAnswer:"
    assert 0 <= result["metrics"]["f1"]["value"] <= 1


def test_choices_of_several_tokens_are_normalised_by_their_length(
    tiny_model: Path, tmp_path: Path, inside: Callable
) -> None:
    result, samples = score(inside, tiny_model, "endings", tmp_path)
    gold, plain, normalised = [0, 1, 0], [], []
    for sample, right in zip(samples, gold, strict=True):
        choices = list(sample["loglikelihoods"])
        (row,) = reference_likelihoods(tiny_model, [sample["prompt"]], choices)
        assert sample["loglikelihoods"] == pytest.approx(row, abs=1e-3)
        plain.append(max(choices, key=row.get) == choices[right])
        normalised.append(max(choices, key=lambda choice: row[choice] / (len(choice) - 1)) == choices[right])
    found = {metric: values["value"] for metric, values in result["metrics"].items()}
    assert found == pytest.approx({"acc": sum(plain) / 3, "acc_norm": sum(normalised) / 3})


def test_free_text_after_examples(tiny_llama: Path, tmp_path: Path, inside: Callable) -> None:
    result, samples = score(inside, tiny_llama, "echo", tmp_path, "--num_fewshot", 2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    for sample, word in zip(samples, ["star", "hive", "cloud"], strict=True):
        first, second, last = sample["prompt"].split("\n\n")
        assert {first, second} < {f"Say: {word}\nSaid: {word}" for word in ("moon", "bee", "rain")}
        assert last == f"Say: {word}\nSaid:"
        ids = tokenizer(sample["prompt"], return_tensors="pt").input_ids
        written = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True).split("\n")[0]
        assert sample["answers"][0].startswith(text[:20]) or text.startswith(sample["answers"][0])
        assert sample["em"] == float(sample["answers"][0].strip() == word)
    assert (result["metric"], result["n"]) == ("em", 3)
    assert torch.is_tensor(ids)


def test_the_template_runs_when_its_data_is_there(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    tasks, sets = tmp_path / "tasks", tmp_path / "sets"
    tasks.mkdir()
    (tasks / "mine.py").write_text(NEW_TASK.read_text().replace("datasets/new_task", "datasets/mine"))
    shutil.copytree(prepared / "tests" / "sample", sets / "mine")
    words = ["--model_args", f"pretrained={tiny_llama}", "--datasets", sets, "--include_path", tasks]
    for task, output in (("mine", tmp_path / "a"), ("sample", tmp_path / "b")):
        folder = sets if task == "mine" else prepared / "tests"
        result = inside("evaluate", *words, "--datasets", folder, "--tasks", task, "--output_path", output)
        assert result.returncode == 0, result.stderr
    mine, ours = (read_lines(tmp_path / file) for file in ("a/tiny/mine_samples.jsonl", "b/tiny/sample_samples.jsonl"))
    assert [sample["loglikelihoods"] for sample in mine] == [sample["loglikelihoods"] for sample in ours]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def doc_to_text(self, doc):", "def doc_to_text(self, doc:", "line 37: "),
        ("def has_test_docs", "def has_tests", "the class NewTask lacks has_test_docs"),
        ("def process_results", "def results", "the class NewTask lacks process_results"),
        (
            "import numpy as np",
            "import nonesuch",
            "cannot be imported: ModuleNotFoundError: No module named 'nonesuch'",
        ),
        ("(Task)", "(object)", "no class that is derived from lm_eval.base.Task"),
    ],
)
def test_a_mistake_in_a_task_file_is_named(
    old: str, new: str, said: str, tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    text = NEW_TASK.read_text()
    assert old in text
    (tmp_path / "mine.py").write_text(text.replace(old, new).replace("datasets/new_task", "datasets/sample"))
    words = ["--model_args", f"pretrained={tiny_llama}", "--datasets", prepared / "tests", "--include_path", tmp_path]
    error = only_error(inside("evaluate", *words, "--tasks", "mine", "--output_path", tmp_path / "results"))
    assert f"{tmp_path / 'mine.py'}" in error
    assert said in error
