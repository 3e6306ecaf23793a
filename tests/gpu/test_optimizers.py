"""Optimizers on a GPU: torch's fused one steps like the plain one on a CPU; those of bitsandbytes learn."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.files import read_lines
from support.finetuning import flags
from support.on_gpu import KIND, needs_gpu

from teacherlm.finetune.known_flags import OPTIMIZERS

pytestmark = pytest.mark.gpu
OF_TORCH = [name for name in OPTIMIZERS if name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd")]
OF_BITSANDBYTES = ["adamw_bnb_8bit", "paged_adamw_32bit", "lion_8bit"]


def losses(inside: Callable, model: Path, prepared: Path, output: Path, optimizer: str) -> list[float]:
    words = [*flags(model, prepared / "SAMPLE", output), "--num_train_epochs", 2, "--optim", optimizer]
    result = inside("finetune", *words, "--logging_steps", 1, "--bf16", "false")
    assert result.returncode == 0, result.stderr
    return [line["loss"] for line in read_lines(output / "log.jsonl")]


def test_the_fused_adamw_is_the_plain_one(tiny_llama: Path, prepared: Path, inside: Callable, tmp_path: Path) -> None:
    plain, fused = (losses(inside, tiny_llama, prepared, tmp_path / name, name) for name in OF_TORCH[:2])
    assert fused == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("name", OF_TORCH[2:])
def test_it_learns(name: str, tiny_llama: Path, prepared: Path, inside: Callable, tmp_path: Path) -> None:
    found = losses(inside, tiny_llama, prepared, tmp_path / "run", name)
    assert all(map(math.isfinite, found))


@needs_gpu
@pytest.mark.parametrize("name", OF_BITSANDBYTES)
def test_those_of_bitsandbytes_learn(
    name: str, tiny_llama: Path, prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    found = losses(inside, tiny_llama, prepared, tmp_path / "run", name)
    assert found[-1] < found[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_fused_step_is_adamw_s(dtype: torch.dtype) -> None:
    """Against the formula (Loshchilov & Hutter 2019, arXiv 1711.05101) in float64."""
    torch.manual_seed(0)
    weights, gradient = torch.randn(1000).to(dtype), torch.randn(1000).to(dtype)
    part = torch.nn.Parameter(weights.clone().to(KIND))
    optimizer = torch.optim.AdamW([part], lr=1e-2, weight_decay=0.1, fused=True)
    part.grad = gradient.to(KIND)
    optimizer.step()
    before, slope = weights.double(), gradient.double()
    expected = before * (1 - 1e-2 * 0.1) - 1e-2 * slope / (slope.abs() + 1e-8)
    torch.testing.assert_close(
        part.detach().cpu().double(), expected, atol=2e-2 if dtype.itemsize < 4 else 1e-6, rtol=1e-2
    )
