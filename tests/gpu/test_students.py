"""Students on a GPU: the loss of the plain forward pass on a CPU, in each precision, and an exact resume."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.any_models import reference, save
from support.asked_models import words
from support.files import read_lines
from support.finetuning import flags
from support.on_gpu import MODELS, llama, needs_gpu, needs_units_for_bfloat16, run_stage

from teacherlm.runtime.loading import load_tokenizer

pytestmark = pytest.mark.gpu
PRECISIONS = [
    pytest.param(("--bf16", "false"), 1e-4, id="float32"),
    pytest.param(("--bf16", "true"), 2e-2, id="bfloat16", marks=needs_units_for_bfloat16),
    pytest.param(("--fp16", "true"), 5e-3, id="float16", marks=needs_gpu),
    pytest.param((), 2e-2, id="chosen by the GPU", marks=needs_gpu),
    pytest.param(("--bf16", "false", "--tf32", "true"), 1e-2, id="tf32", marks=needs_gpu),
]


def expected_loss(folder: Path, prepared: Path, count: int = 4) -> float:
    """Of the first samples together, by plain forward passes in float64."""
    tokenizer = load_tokenizer(folder)
    rows = tokenizer([sample["text"] for sample in read_lines(prepared / "SAMPLE.jsonl")[:count]])["input_ids"]
    losses = [reference(folder, ids)[:-1].gather(1, torch.tensor(ids)[1:, None]) for ids in rows]
    return -float(torch.cat(losses).mean())


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_each_kind_of_model_has_the_loss_of_the_plain_forward_pass(
    make: Callable, prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", make())
    more = ["--max_train_samples", 4, "--learning_rate", 1e-9, "--logging_steps", 1, "--bf16", "false"]
    result = inside("finetune", *words("finetune", folder, prepared, tmp_path), *more)
    assert result.returncode == 0, result.stderr
    assert ("trained in padded batches" in result.stdout) == (MODELS[make][1] == "padded")
    (line,) = read_lines(tmp_path / "run" / "log.jsonl")
    assert line["loss"] == pytest.approx(expected_loss(folder, prepared), rel=1e-4)


@pytest.mark.parametrize(("precision", "apart"), PRECISIONS)
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_each_precision_has_the_loss_of_the_plain_forward_pass(
    checkpointing: str, precision: tuple[str, ...], apart: float, prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", llama())
    more = ["--max_train_samples", 4, "--learning_rate", 1e-9, "--logging_steps", 1, *precision]
    more += ["--gradient_checkpointing", checkpointing]
    result = inside("finetune", *words("finetune", folder, prepared, tmp_path), *more)
    assert result.returncode == 0, result.stderr
    (line,) = read_lines(tmp_path / "run" / "log.jsonl")
    assert line["loss"] == pytest.approx(expected_loss(folder, prepared), rel=apart)
    assert line["memory_gib"] >= 0
    assert line["tokens_per_second"] > 0


@pytest.fixture(scope="module")
def on_cpu(tiny_llama: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two epochs that a CPU computes in float32."""
    output = tmp_path_factory.mktemp("cpu") / "run"
    words = [*flags(tiny_llama, prepared / "SAMPLE", output), "--num_train_epochs", 2, "--logging_steps", 1]
    done = run_stage("finetune", *words, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert "no GPU here" in done.stdout
    return [line["loss"] for line in read_lines(output / "log.jsonl")]


@pytest.mark.parametrize(("precision", "apart"), PRECISIONS[:3])
def test_it_learns_what_a_cpu_learns_and_goes_on_where_it_stopped(
    precision: tuple[str, ...],
    apart: float,
    on_cpu: list[float],
    tiny_llama: Path,
    prepared: Path,
    inside: Callable,
    tmp_path: Path,
) -> None:
    """Two epochs at once, and one after the other: in float16 the scaler's state is kept too."""
    losses = []
    for name, epochs in {"whole": (2,), "parts": (1, 2)}.items():
        for until in epochs:
            asked = [*flags(tiny_llama, prepared / "SAMPLE", tmp_path / name), "--num_train_epochs", until, *precision]
            result = inside("finetune", *asked, "--logging_steps", 1)
            assert result.returncode == 0, result.stderr
        losses.append([line["loss"] for line in read_lines(tmp_path / name / "log.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0] == pytest.approx(on_cpu, rel=max(apart, 1e-3))
    assert losses[0][-1] < losses[0][0]
