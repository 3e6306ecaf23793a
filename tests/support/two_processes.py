"""A finetuning in two processes."""

import os
import subprocess
from pathlib import Path

from support.programs import ROOT, warm_python

EPOCHS, STEPS = 2, 6  # 22 samples, 4 per step: the last step of an epoch has 2


def finetune(model: Path, dataset: Path, store: Path, processes: int, *words: object) -> subprocess.CompletedProcess:
    """Run finetune.sh with 4 samples per step to its end."""
    started = start(model, dataset, store, processes, *words)
    output, errors = started.communicate()
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


def start(model: Path, dataset: Path, store: Path, processes: int, *words: object) -> subprocess.Popen:
    positional = [model, dataset, 4 // processes, 1, 1e-3, EPOCHS, "cot_text", "run", store, "test"]
    command = ["bash", ROOT / "finetune" / "finetune.sh", *positional, "--logging_steps", 1, *words]
    environment = {
        **os.environ,
        "PYTHON": warm_python(),
        "NUM_GPUS": str(processes),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(list(map(str, command)), env=environment, stdout=-1, stderr=-1, text=True)
