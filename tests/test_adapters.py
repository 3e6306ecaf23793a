"""LoRA: adapters train, are saved alone or merged, go on after an interruption, and are scored like any checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import only_error
from test_finetune import STEPS, flags, read_log, weights
from transformers import AutoModelForCausalLM


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


@pytest.mark.parametrize("words", [("--peft", "qlora"), ("--peft", "adapter"), ("--peft_rank", 0)])
def test_what_cannot_be_is_refused(
    words: tuple[object, ...], tiny_llama: Path, prepared: Path, tmp_path: Path, inside: Callable
) -> None:
    error = only_error(inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run"), *words))
    assert str(words[0]) in error
