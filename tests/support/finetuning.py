"""What tests of finetuning share: its flags, its log, its weights."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.programs import ROOT, warm_python

EPOCHS, STEPS = 4, 6  # of 24 samples in batches of 4


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Path:
    return prepared / "SAMPLE"


def flags(model: Path, dataset: Path, output: Path) -> list[object]:
    """The same run by its flags."""
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


EPOCHS, STEPS = 2, 6  # of 22 samples, 4 a step: the last step of an epoch has 2


def finetune(model: Path, dataset: Path, store: Path, processes: int, *words: object) -> subprocess.CompletedProcess:
    """finetune.sh with 4 samples a step, to its end."""
    started = start(model, dataset, store, processes, *words)
    output, errors = started.communicate()
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


def start(
    model: Path, dataset: Path, store: Path, processes: int, *words: object, python: object = None
) -> subprocess.Popen:
    positional = [model, dataset, 4 // processes, 1, 1e-3, EPOCHS, "cot_text", "run", store, "test"]
    command = ["bash", ROOT / "finetune" / "finetune.sh", *positional, "--logging_steps", 1, *words]
    environment = {
        **os.environ,
        "PYTHON": str(python or warm_python()),
        "NUM_GPUS": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=-1, stderr=-1, text=True)
