"""Several processes and a GPU: NCCL between them, and two on one GPU, which NCCL refuses, in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.files import read_lines
from support.on_gpu import KIND, needs_gpu
from support.programs import ROOT

pytestmark = pytest.mark.gpu
MEET = """
import os, sys
import torch
import torch.distributed as dist
from teacherlm.runtime import processes, rendezvous

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2]}
if torch.cuda.is_available():
    torch.cuda.set_device(0)
rendezvous.stay_on_this_machine()
dist.init_process_group(sys.argv[1])
said = {"text": "\\u00e4", "numbers": [1, 2.5, None]}
assert rendezvous.broadcast(said) == said
assert rendezvous.gather(said) == [said]
assert rendezvous.broadcast_bytes(b"\\x00\\xff") == b"\\x00\\xff"
tensor = torch.ones(3, device="cuda" if torch.cuda.is_available() else "cpu")
dist.all_reduce(tensor)
dist.barrier()
print(rendezvous.device().type, dist.get_backend())
dist.destroy_process_group()
"""


@pytest.mark.parametrize("backend", {"cuda": ["nccl", "cpu:gloo,cuda:nccl", "gloo"], "cpu": ["gloo", "cpu:gloo"]}[KIND])
def test_processes_tell_one_another_values(backend: str, tmp_path: Path) -> None:
    """Finetuning's processes have NCCL alone, ATLAS's workers NCCL and gloo."""
    from teacherlm.runtime.launcher import meeting_port

    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-P", "-c", MEET, backend, meeting_port("127.0.0.1")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == ("cuda" if backend == "nccl" else "cpu")


def start(model: Path, prepared: Path, store: Path, processes: int) -> subprocess.CompletedProcess:
    positional = [model, prepared / "SAMPLE", 4 // processes, 1, 1e-3, 1, "cot_text", "run", store, "test"]
    command = ["bash", ROOT / "finetune" / "finetune.sh", *positional, "--logging_steps", 1, "--bf16", "false"]
    environment = {**os.environ, "PYTHON": sys.executable, "NUM_GPUS": str(processes)}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)


@needs_gpu
def test_more_processes_than_gpus_are_refused_in_one_line(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    gpus = torch.cuda.device_count()
    done = start(tiny_llama, prepared, tmp_path, gpus + 1)
    assert done.returncode == 2
    assert f"process {gpus} of this machine has no GPU of its own; start at most {gpus} here" in done.stderr
    assert "Traceback" not in done.stderr


@needs_gpu
def test_two_gpus_learn_what_one_does(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    losses = []
    for processes in (1, 2):
        done = start(tiny_llama, prepared, tmp_path / str(processes), processes)
        assert done.returncode == 0, done.stderr[-3000:]
        lines = read_lines(tmp_path / str(processes) / "run" / "log.jsonl")
        losses.append([line["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_process_for_each_gpu_is_what_a_machine_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    from teacherlm.runtime.launcher import processes_here

    monkeypatch.delenv("NUM_GPUS", raising=False)
    monkeypatch.setenv("PYTHON", sys.executable)
    assert processes_here() in (torch.cuda.device_count(), 0)  # 0 without nvidia-smi: one process, on whatever there is
