"""Shared parts of the tests of finetuning: a dataset, flags, log and weights."""

import json
from pathlib import Path

import datasets

EPOCHS, STEPS = 4, 6  # of 24 samples in batches of 4


def flags(model: Path, dataset: Path, output: Path) -> list[object]:
    """The flags of the same run for finetune.py."""
    return [
        *("--model_name_or_path", model, "--dataset_name", dataset, "--task_type", "cot_text", "--output_dir", output),
        *("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 1, "--learning_rate", 1e-3),
        *("--lr", "constant", "--num_train_epochs", EPOCHS, "--save_strategy", "epoch", "--logging_steps", 4),
        *("--gradient_checkpointing", "true"),
    ]


def read_log(folder: Path) -> list[dict]:
    """log.jsonl without times and memory."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    measured = {"time", "tokens_per_second", "memory_gib"}
    assert all(measured <= record.keys() for record in records)
    return [{name: value for name, value in record.items() if name not in measured} for record in records]


def weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("checkpoint-*/model.safetensors")}


def odd_or_even(folder: Path) -> Path:
    """A dataset of twelve samples with `text`, `cot_tail` and `cot`, whose explanations have different lengths."""
    rows = []
    for number in range(12):
        question, letter = f"Q: Is {number} odd? (A) yes (B) no A: The answer is (", "BA"[number % 2]
        explanation = f" It is {number}." * (number % 3 + 1)
        texts = {"text": f"{question}{letter}).", "cot_tail": f"{question}{letter}).{explanation}", "cot": explanation}
        tail = [["question", len(question)], ["answer", len(question) + 3], ["explanation", len(texts["cot_tail"])]]
        rows.append({**texts, "parts": json.dumps({"cot_tail": tail})})
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))
    return folder
