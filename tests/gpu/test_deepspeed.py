"""DeepSpeed on one GPU, stage by stage: the losses of a training without it, checkpoints that are ordinary models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.files import read_lines
from support.finetuning import flags
from support.on_gpu import needs_gpu, run_stage
from support.programs import ROOT
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.gpu, needs_gpu]


def offloaded(folder: Path) -> Path:
    """zero2.json with the optimizer's states on the CPU, where torch's optimizer steps: nothing is compiled."""
    config = json.loads((ROOT / "finetune" / "deepspeed" / "zero2.json").read_text(encoding="utf-8"))
    config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    config |= {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}
    path = folder / "zero2_offload.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def losses(model: Path, prepared: Path, output: Path, *more: object, **variables: str) -> list[float]:
    words = [*flags(model, prepared / "SAMPLE", output), "--num_train_epochs", 1, "--logging_steps", 1, *more]
    done = run_stage("finetune", *words, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line["loss"] for line in read_lines(output / "log.jsonl")]


@pytest.fixture(scope="module")
def on_cpu(tiny_llama: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    output = tmp_path_factory.mktemp("cpu") / "run"
    return losses(tiny_llama, prepared, output, CUDA_VISIBLE_DEVICES="")


@pytest.mark.parametrize("stage", ["none", "zero1", "zero2", "zero2 offloaded", "zero3", "zero3_offload"])
def test_it_learns_what_a_cpu_learns(
    stage: str, on_cpu: list[float], tiny_llama: Path, prepared: Path, tmp_path: Path
) -> None:
    if stage != "none":
        pytest.importorskip("deepspeed", reason="needs deepspeed")
    if stage == "zero3_offload" and not (shutil.which("nvcc") and shutil.which("g++") and shutil.which("ninja")):
        pytest.skip("DeepSpeed compiles the optimizer of zero3_offload: needs nvcc, g++ and ninja")
    config = offloaded(tmp_path) if stage == "zero2 offloaded" else stage
    found = losses(tiny_llama, prepared, tmp_path / "run", "--deepspeed", config, "--bf16", "false")
    assert found == pytest.approx(on_cpu, rel=2e-3)
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    assert all(part.isfinite().all() for part in model.parameters())
    assert bool(list(checkpoint.glob("global_step*"))) == (stage != "none")


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_in_bfloat16_it_learns_nearly_that(
    stage: str, on_cpu: list[float], tiny_llama: Path, prepared: Path, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed", reason="needs deepspeed")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no units for bfloat16")
    found = losses(tiny_llama, prepared, tmp_path / "run", "--deepspeed", stage, "--bf16", "true")
    assert found == pytest.approx(on_cpu, rel=3e-2)


@pytest.mark.parametrize("bf16", ["false", "true"])
def test_another_stage_and_torch_go_on(bf16: str, tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    """The float32 weights go on too, which the model's file lacks in bfloat16."""
    pytest.importorskip("deepspeed", reason="needs deepspeed")
    if bf16 == "true" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no units for bfloat16")
    words = ["--bf16", bf16, "--save_strategy", "steps", "--save_steps", 2]
    expected = losses(tiny_llama, prepared, tmp_path / "whole", *words, "--deepspeed", "zero2", "--max_steps", 6)
    for stage, until in (("zero2", 2), ("zero3", 4), ("none", 5), ("zero2", 6)):
        found = losses(tiny_llama, prepared, tmp_path / "run", *words, "--deepspeed", stage, "--max_steps", until)
    assert found == pytest.approx(expected, rel=3e-2 if bf16 == "true" else 2e-3)
