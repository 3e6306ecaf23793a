"""The loss on dev samples: exact, kept in the log, with a link to the best checkpoint, and a reason to stop."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from support.finetuning import STEPS, flags, weights
from support.programs import only_error
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def dev(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dev dataset of 13 samples, so that the last of the batches of 4 is smaller."""
    folder = tmp_path_factory.mktemp("dev") / "DEV"
    dataset = datasets.load_from_disk(str(prepared / "SAMPLE"))
    (other,) = [name for name in dataset if name != "train"]
    dataset[other].select(range(13)).save_to_disk(str(folder))
    return folder


def dev_losses(folder: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record["dev_loss"] for record in records if "dev_loss" in record}


def exact_loss(checkpoint: Path, dev: Path) -> float:
    """The loss by the library, computed for one sample at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    total = count = 0
    for text in datasets.load_from_disk(str(dev))["cot_text"]:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def test_each_epoch_s_loss_is_exact_and_the_best_is_linked(
    tiny_llama: Path, prepared: Path, dev: Path, tmp_path: Path, inside: Callable
) -> None:
    plain, run = tmp_path / "plain", tmp_path / "run"
    words = ["--num_train_epochs", 2]
    assert inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", plain), *words).returncode == 0
    result = inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", run), *words, "--dev_dataset", dev)
    assert result.returncode == 0, result.stderr
    losses = dev_losses(run)
    assert list(losses) == [STEPS, 2 * STEPS]
    for step, loss in losses.items():
        assert loss == pytest.approx(exact_loss(run / f"checkpoint-{step}", dev), rel=1e-5)
    best = min(losses, key=losses.get)
    assert (run / "best").resolve().name == f"checkpoint-{best}"
    assert weights(run) == weights(plain)  # evaluation does not change the training


def test_it_stops_when_nothing_gets_better_and_keeps_the_best(
    tiny_llama: Path, prepared: Path, dev: Path, tmp_path: Path, inside: Callable
) -> None:
    words = ["--dev_dataset", dev, "--early_stop", 2, "--num_train_epochs", 30, "--learning_rate", 0.1]
    words += ["--save_total_limit", 1]
    result = inside("finetune", *flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run"), *words)
    assert result.returncode == 0, result.stderr
    losses = dev_losses(tmp_path / "run")
    best = min(losses, key=losses.get)
    assert len([step for step in losses if step > best]) == 2 < 30
    assert f"no better loss on the dev samples for 2 epochs; the best is checkpoint-{best}" in result.stdout
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_what_cannot_be_is_refused(tiny_llama: Path, prepared: Path, dev: Path, tmp_path: Path, inside: Callable):
    words = flags(tiny_llama, prepared / "SAMPLE", tmp_path / "run")
    assert "--early_stop needs --dev_dataset" in only_error(inside("finetune", *words, "--early_stop", 1))
    assert "no such dataset" in only_error(inside("finetune", *words, "--dev_dataset", tmp_path / "gone"))
