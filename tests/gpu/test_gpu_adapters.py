"""LoRA and QLoRA on a GPU: the loss of the student, adapters that learn, and what they are merged to."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.any_models import llama_config, reference, save
from support.files import read_lines
from support.finetuning import flags
from support.on_gpu import needs_gpu
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from teacherlm.runtime.loading import load_tokenizer

pytest.importorskip("peft", reason="needs peft")
pytestmark = pytest.mark.gpu


def train(inside: Callable, folder: Path, prepared: Path, output: Path, kind: str, *more: object) -> list[float]:
    words = [*flags(folder, prepared / "SAMPLE", output), "--peft", kind, "--peft_rank", 4, "--num_train_epochs", 4]
    result = inside("finetune", *words, "--logging_steps", 1, "--learning_rate", 1e-2, *more)
    assert result.returncode == 0, result.stderr
    return [line["loss"] for line in read_lines(output / "log.jsonl")]


@pytest.mark.parametrize("precision", ["float32", pytest.param("16 bits", marks=needs_gpu)])
def test_lora_begins_with_the_student_s_loss_and_learns(
    precision: str, tiny_llama: Path, prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    more = ["--bf16", "false"] if precision == "float32" else []
    losses = train(inside, tiny_llama, prepared, tmp_path / "run", "lora", "--merge_adapters", "true", *more)
    assert losses[0] == pytest.approx(first_loss(tiny_llama, prepared), rel=0.1)  # of other samples: they are shuffled
    assert sum(losses[-4:]) < sum(losses[:4])
    merged = sorted((tmp_path / "run").glob("checkpoint-*/merged"))[-1]
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert all(part.isfinite().all() for part in model.parameters())


def first_loss(folder: Path, prepared: Path) -> float:
    tokenizer = load_tokenizer(folder)
    texts = [f"{sample['cot_text']}" for sample in read_lines(prepared / "SAMPLE.jsonl")]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    losses = [reference(folder, ids)[:-1].gather(1, torch.tensor(ids)[1:, None]) for ids in rows]
    return -float(torch.cat(losses).mean())


@needs_gpu
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_qlora_begins_near_the_student_s_loss_and_learns(
    checkpointing: str, prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128}  # blocks of 64 numbers
    folder = save(tmp_path / "model", LlamaForCausalLM(llama_config(**sizes)))
    more = ["--gradient_checkpointing", checkpointing, "--learning_rate", "1e-3"]
    losses = train(inside, folder, prepared, tmp_path / "run", "qlora", *more)
    assert losses[0] == pytest.approx(first_loss(folder, prepared), rel=0.5)  # its weights have 4 bits
    assert sum(losses[-4:]) < sum(losses[:4])
    assert sorted((tmp_path / "run").glob("checkpoint-*/adapter_model.safetensors"))
