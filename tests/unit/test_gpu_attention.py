"""The branches that attention takes on a GPU, computed on a CPU, held against the library's plain forward pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.any_models import reference, save
from support.asked_models import CONTEXT, ask, generated, likeliest
from support.on_gpu import PROMPTS, bloom, llama
from support.plain_reference import Plain
from transformers import AutoModelForCausalLM

from teacherlm.finetune.chunked_loss import use_chunked_loss
from teacherlm.finetune.collators import PackingCollator
from teacherlm.finetune.student import logits_of
from teacherlm.runtime import packed_attention
from teacherlm.runtime.generation import decode_attention
from teacherlm.runtime.loading import load_model, load_tokenizer
from teacherlm.scoring.language_model import LanguageModel

ROWS = [list(range(3, 3 + length)) for length in (17, 4, 17, 40, 2, 9)]
SAMPLES = [{"input_ids": row, "skipped": 0, "sample": number} for number, row in enumerate(ROWS)]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns the numbers of samples that were computed together."""
    together: list[int] = []
    layout = packed_attention.Layout

    def seen(lengths: list[int], device: torch.device) -> packed_attention.Layout:
        together.append(len(lengths))
        return layout(lengths, device)

    monkeypatch.setattr(packed_attention, "Layout", seen)
    monkeypatch.setattr(packed_attention, "takes_padding", lambda device: True)
    monkeypatch.setattr(decode_attention, "has_fused_kernel", lambda device: True)
    return together


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [llama, bloom], ids=lambda make: make.__name__)
def test_samples_of_several_lengths_are_computed_together_and_right(
    make: Callable, attention: str, as_on_a_gpu: list[int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", make())
    model = load_model(folder, dtype=torch.float32)
    assert packed_attention.use_packing(model, attention, longest=40)
    with torch.no_grad():
        found = logits_of(model.eval(), "packed", SAMPLES)
    for row, logits in zip(ROWS, found, strict=True):
        expected = reference(folder, row)[-len(logits) :]
        torch.testing.assert_close(logits.double().log_softmax(-1), expected, atol=1e-3, rtol=0)
    use_chunked_loss(model.train())
    batch = PackingCollator("token")(SAMPLES)
    batch["token_weights"] = batch["token_weights"] / batch["token_weights"].sum()
    loss = model(**{name: part for name, part in batch.items() if name != "samples"}, use_cache=False)["loss"]
    loss.backward()
    plain = Plain(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"))
    wanted, after = plain.step(ROWS, 1.0)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    before = dict(plain.model.named_parameters())
    for name, part in model.named_parameters():
        slope = (before[name] - after[name]).float().detach()
        torch.testing.assert_close(part.grad, slope, atol=1e-3 * max(1.0, slope.abs().max().item()), rtol=1e-2)
    assert set(as_on_a_gpu) == {len(ROWS)}


def test_questions_with_a_common_prefix_are_scored_together_and_right(as_on_a_gpu: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", llama())
    examples = " ".join(f"{number}. {CONTEXT}A)." for number in range(8))
    contexts = [f"{examples} {prompt} {CONTEXT}" for prompt in PROMPTS]
    model = LanguageModel(folder, "cpu", "float32", tokenization="apart")
    found = model.loglikelihood(ask(*((context, letter) for context in contexts for letter in "AB")))
    tokenizer = load_tokenizer(folder)
    for number, (value, _) in enumerate(found):
        logs = reference(folder, tokenizer(contexts[number // 2])["input_ids"])[-1]
        assert value == pytest.approx(float(logs[tokenizer("AB"[number % 2])["input_ids"][0]]), abs=2e-3)
    assert model.scored.verdict.path == "packed"
    assert max(as_on_a_gpu) >= len(PROMPTS)


def test_a_teacher_with_torch_s_kernel_writes_the_likeliest_tokens(as_on_a_gpu: list[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", llama())
    path, texts = generated(folder, PROMPTS)
    assert path == "batched"
    assert texts == [likeliest(folder, prompt) for prompt in PROMPTS]
