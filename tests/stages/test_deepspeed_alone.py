"""DeepSpeed in a single process, as on a machine with one GPU; here over gloo, on the CPU."""

import os
import subprocess
from pathlib import Path

import pytest
from support.files import read_lines
from support.finetuning import flags
from support.programs import ROOT, warm_python

AS_WITH_A_GPU = f"""
import runpy
from types import SimpleNamespace
from accelerate import PartialState
from teacherlm.finetune import this_machine
from teacherlm.runtime.compat.of_accelerate import GLOO

PartialState._prepare_backend = lambda *_, **__: GLOO  # in place of NCCL
this_machine.torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))
runpy.run_path({str(ROOT / "finetune" / "finetune.py")!r}, run_name="__main__")
"""
"""finetune.py, whose flags are read as on a machine with a GPU; its processes meet over gloo all the same."""
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_it_learns_what_is_learnt_without(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    """Without a launcher, whose variables torch.distributed asks for."""
    script = tmp_path / "as_with_a_gpu.py"
    script.write_text(AS_WITH_A_GPU, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    losses = []
    for name, more in {"with": ["--bf16", "false", "--deepspeed", "zero3"], "without": []}.items():
        words = flags(tiny_llama, prepared / "SAMPLE", tmp_path / name)
        words += ["--max_train_samples", 8, "--num_train_epochs", 2, "--logging_steps", 1, *more]
        program = script if more else ROOT / "finetune" / "finetune.py"
        command = list(map(str, [warm_python(), program, *words]))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append([line["loss"] for line in read_lines(tmp_path / name / "log.jsonl")])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert list((tmp_path / "with").glob("checkpoint-*/global_step*/*optim_states.pt"))  # DeepSpeed's own
