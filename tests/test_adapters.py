"""LoRA: adapters train, are saved alone or merged, go on after an interruption, and are scored like any checkpoint."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import only_error, read_lines
from safetensors.torch import load_file, save_file
from test_finetune import STEPS, flags, read_log, weights
from transformers import AutoModelForCausalLM

from teacherlm.adapters import base_reference
from teacherlm.models import Model


def lora(model: Path, dataset: Path, output: Path) -> list[object]:
    return [*flags(model, dataset, output), "--peft", "lora", "--peft_rank", 4, "--num_train_epochs", 2]


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model.eval()(torch.arange(20)[None]).logits


def test_adapters_and_the_merged_student_are_one_model(
    tiny_model: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    words = lora(tiny_model, prepared / "SAMPLE", tmp_path / "run")
    result = inside("finetune", *words, "--merge_adapters", "true")
    assert result.returncode == 0, result.stderr
    checkpoint = tmp_path / "run" / f"checkpoint-{2 * STEPS}"
    assert not (checkpoint / "model.safetensors").exists()
    trained = logits(checkpoint)
    torch.testing.assert_close(logits(checkpoint / "merged"), trained)
    assert (trained - logits(tiny_model)).abs().max() > 1e-3
    log = read_log(tmp_path / "run")
    assert log[-1]["loss"] < log[0]["loss"]


def test_it_goes_on_as_if_it_had_not_been_interrupted(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert inside("finetune", *lora(tiny_llama, prepared / "SAMPLE", whole)).returncode == 0
    assert inside("finetune", *lora(tiny_llama, prepared / "SAMPLE", parts), "--num_train_epochs", 1).returncode == 0
    assert "going on from" in inside("finetune", *lora(tiny_llama, prepared / "SAMPLE", parts)).stdout
    assert read_log(parts) == read_log(whole)
    name = f"checkpoint-{2 * STEPS}/adapter_model.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert not weights(whole)


def test_checkpoints_of_adapters_are_scored(tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable) -> None:
    assert inside("finetune", *lora(tiny_llama, prepared / "SAMPLE", tmp_path / "run")).returncode == 0
    words = ["--model_args", f"pretrained={tiny_llama}", "--checkpoints", tmp_path / "run"]
    words += ["--tasks", "sample", "--datasets", prepared / "tests"]
    result = inside("evaluate", *words, "--output_path", tmp_path / "results")
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "results").rglob("sample.json"))) == 3  # the student untrained too


@pytest.fixture
def trained(
    tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The base model's folder and a checkpoint of its adapters, trained on a relative path; the working folder is
    another one by now."""
    home = tmp_path / "home"
    shutil.copytree(tiny_llama, home / "models" / "tiny")
    monkeypatch.chdir(home)
    words = [*lora(Path("models/tiny"), prepared / "SAMPLE", Path("run")), "--merge_adapters", "true"]
    result = inside("finetune", *words, "--learning_rate", 0.05, "--num_train_epochs", 1)
    assert result.returncode == 0, result.stderr
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home / "models" / "tiny", home / "run" / f"checkpoint-{STEPS}"


def score(inside: Callable, prepared: Path, model: Path, name: str) -> list[list[float]]:
    """Log-likelihoods of the choices of the first 16 questions."""
    words = ["--model_args", f"pretrained={model}", "--tasks", "sample", "--datasets", prepared / "tests"]
    result = inside("evaluate", *words, "--output_path", name, "--limit", 16)
    assert result.returncode == 0, result.stderr
    assert "done already" not in result.stdout
    (samples,) = Path(name).rglob("sample_samples.jsonl")
    return [list(record["loglikelihoods"].values()) for record in read_lines(samples)]


def test_adapters_trained_on_a_relative_path_are_scored_from_another_folder(
    trained: tuple[Path, Path], prepared: Path, inside: Callable
) -> None:
    """They score as the merged model does, and as neither would without them."""
    base, checkpoint = trained
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    scores = {
        name: torch.tensor(score(inside, prepared, folder, name))
        for name, folder in (("adapters", checkpoint), ("merged", checkpoint / "merged"), ("base", base))
    }
    torch.testing.assert_close(scores["adapters"], scores["merged"], atol=1e-4, rtol=1e-4)
    assert (scores["adapters"] - scores["base"]).abs().max() > 1e-2


def test_adapters_of_a_base_model_that_changed_are_refused(
    trained: tuple[Path, Path], prepared: Path, inside: Callable
) -> None:
    base, checkpoint = trained
    words = ["--model_args", f"pretrained={checkpoint}", "--tasks", "sample", "--datasets", prepared / "tests"]
    words += ["--output_path", "results", "--limit", 4]
    assert inside("evaluate", *words).returncode == 0
    assert "done already" in inside("evaluate", *words).stdout
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert f"{base}, changed since they were trained" in only_error(inside("evaluate", *words))
    (checkpoint / "base_model.json").unlink()  # adapters of another program do not say what they were trained on
    again = inside("evaluate", *words)
    assert again.returncode == 0, again.stderr
    assert "done already" not in again.stdout
    assert "done already" in inside("evaluate", *words).stdout
    weights["model.norm.weight"] /= 2
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert "done already" not in inside("evaluate", *words).stdout


def test_a_base_model_that_is_gone_is_named(trained: tuple[Path, Path], prepared: Path, inside: Callable) -> None:
    base, checkpoint = trained
    os.rename(base, base.with_name("moved"))
    words = ["--model_args", f"pretrained={checkpoint}", "--tasks", "sample", "--datasets", prepared / "tests"]
    error = only_error(inside("evaluate", *words))
    assert f"{checkpoint}: the base model of these adapters is not there: {base}" in error


def test_adapters_are_not_taken_for_a_student(trained: tuple[Path, Path], prepared: Path, inside: Callable) -> None:
    _, checkpoint = trained
    error = only_error(inside("finetune", *flags(checkpoint, prepared / "SAMPLE", Path("run"))))
    assert f"{checkpoint}: these are adapters; give an ordinary model, such as the folder merged" in error
    assert not Path("run").exists()


def test_adapters_of_a_model_from_the_hub_name_it_with_its_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert base_reference(Model(name="tiny", hub="owner/tiny"), tmp_path / commit) == ("owner/tiny", commit)
    assert base_reference(Model(name="tiny", path="tiny"), Path("tiny")) == (str(Path.cwd() / "tiny"), None)


@pytest.mark.parametrize(
    "words",
    [
        ("--peft", "qlora"),
        ("--peft", "adapter"),
        ("--peft_rank", 0),
        ("--peft_rank", 8),
        ("--merge_adapters", "true"),
        ("--merge_adapters", "true", "--peft", "qlora"),
    ],
)
def test_what_cannot_be_is_refused(
    words: tuple[object, ...], tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    error = only_error(inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run"), *words))
    assert str(words[0]) in error
