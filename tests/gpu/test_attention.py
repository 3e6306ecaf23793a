"""Attention on a GPU, kind by kind: packed samples have the logits, the loss and the gradients of one sample alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.any_models import reference, save
from support.on_gpu import DTYPES, KIND, bloom, llama, needs_gpu
from support.plain_reference import Plain
from transformers import AutoModelForCausalLM

from teacherlm.finetune.chunked_loss import use_chunked_loss
from teacherlm.finetune.collators import PackingCollator
from teacherlm.finetune.student import logits_of
from teacherlm.runtime.generation import decode_attention
from teacherlm.runtime.loading import load_model
from teacherlm.runtime.packed_attention import use_packing

pytestmark = pytest.mark.gpu
ROWS = [list(range(3, 3 + length)) for length in (17, 4, 17, 40, 1, 9)]
KINDS = ["sdpa", "eager", pytest.param("flash_attention_2", marks=needs_gpu)]


def samples() -> list[dict]:
    return [{"input_ids": row, "skipped": 0, "sample": number} for number, row in enumerate(ROWS)]


def require_kind(attention: str, make: Callable, dtype: str) -> None:
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn", reason="needs flash-attn")
        if dtype == "float32" or make is bloom:
            pytest.skip("flash attention computes in 16 bits, and has no ALiBi here")


@pytest.mark.parametrize(("dtype", "apart"), DTYPES)
@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("make", [llama, bloom], ids=lambda make: make.__name__)
def test_packed_samples_have_the_logits_of_each_alone(
    make: Callable, attention: str, dtype: str, apart: float, tmp_path: Path
) -> None:
    require_kind(attention, make, dtype)
    torch.manual_seed(0)
    folder = save(tmp_path / "model", make())
    model = load_model(folder, dtype=getattr(torch, dtype)).to(KIND).eval()
    assert use_packing(model, attention, longest=40)
    with torch.no_grad():
        found = logits_of(model, "packed", samples())
    for row, logits in zip(ROWS, found, strict=True):
        expected = reference(folder, row)[-len(logits) :]
        torch.testing.assert_close(logits.double().log_softmax(-1).cpu(), expected, atol=apart, rtol=0)


@pytest.mark.parametrize("attention", KINDS[:2])
@pytest.mark.parametrize("make", [llama, bloom], ids=lambda make: make.__name__)
def test_packed_samples_have_the_gradients_of_each_alone(make: Callable, attention: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", make())
    plain = Plain(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"))
    rows = [row for row in ROWS if len(row) > 1]
    expected, after = plain.step(rows, 1.0)
    model = load_model(folder, dtype=torch.float32).to(KIND).train()
    use_packing(model, attention, longest=40)
    use_chunked_loss(model)
    batch = PackingCollator("token")([sample for sample in samples() if len(sample["input_ids"]) > 1])
    batch["token_weights"] = batch["token_weights"] / batch["token_weights"].sum()
    loss = model(**{name: part.to(KIND) for name, part in batch.items() if name != "samples"}, use_cache=False)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    before = dict(plain.model.named_parameters())
    for name, part in model.named_parameters():
        wanted = (before[name] - after[name]).float()
        torch.testing.assert_close(part.grad.cpu(), wanted, atol=1e-3 * max(1.0, wanted.abs().max().item()), rtol=1e-2)


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-4), ("float16", 1e-2), ("bfloat16", 5e-2)])
@pytest.mark.parametrize(("heads", "groups", "size", "values"), [(4, 4, 64, 64), (8, 2, 64, 64), (4, 1, 24, 16)])
def test_one_new_token_attends_to_the_columns_of_its_row(
    heads: int, groups: int, size: int, values: int, dtype: str, apart: float
) -> None:
    """Rows of other lengths, grouped heads, and values of another size than keys (DeepSeek-V3)."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    query, key, value = (
        torch.randn(3, n, t, d) for n, t, d in [(heads, 1, size), (groups, 37, size), (groups, 37, values)]
    )
    mask = torch.ones(3, 1, 1, 37, dtype=torch.bool)
    mask[1, ..., :20] = False
    mask[2, ..., 30:] = False
    found, _ = decode_attention.attend(
        torch.nn.Module(), *(t.to(KIND, kind) for t in (query, key, value)), mask.to(KIND)
    )
    query, key, value = (part.to(kind).double() for part in (query, key, value))
    key, value = (part.repeat_interleave(heads // groups, dim=1) for part in (key, value))
    scores = (query @ key.transpose(2, 3) * size**-0.5).masked_fill(~mask, -torch.inf)
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(found.double().cpu(), expected, atol=apart, rtol=apart)
