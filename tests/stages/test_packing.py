"""Packed batches: losses and gradients are those of the samples one at a time, with the library's own model."""

from pathlib import Path

import pytest
import torch
from support.files import sample_claims
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from teacherlm.finetune import chunked_loss
from teacherlm.finetune.chunked_loss import use_chunked_loss
from teacherlm.finetune.collators import NO_LOSS, PackingCollator, PaddingCollator, next_tokens, token_weights
from teacherlm.runtime.packed_attention import Layout, Packing, causal_sdpa, use_packing

TEXTS = [
    "The moon.",
    "It is. " * 9,
    *(claim["sentence"] for claim in [*sample_claims()][:3]),
    "A last one, which is longer than most. " * 3,
]


def encoded(folder: Path) -> list[dict]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    samples = [{"input_ids": tokenizer(text)["input_ids"], "skipped": 0, "sample": n} for n, text in enumerate(TEXTS)]
    assert len({len(sample["input_ids"]) for sample in samples}) > 3
    return samples


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = AutoConfig.from_pretrained(folder)
    config.dropout = 0.0  # OPT's
    return AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype)


def one_at_a_time(
    folder: Path, samples: list[dict], dtype: torch.dtype = torch.float32
) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss of all tokens and its gradients by the library, with each sample alone.

    The cross-entropy is in float64, because torch's in float32 is off by 1e-5 with a vocabulary of 49,152.
    """
    model = load(folder, dtype)
    predicted = sum(len(sample["input_ids"]) - 1 - max(0, sample["skipped"] - 1) for sample in samples)
    total = 0.0
    for sample in samples:
        ids = torch.tensor([sample["input_ids"]])
        labels = ids.clone()
        labels[0, : sample["skipped"]] = NO_LOSS
        logits_TV = model(input_ids=ids).logits[0, :-1].double()
        loss = torch.nn.functional.cross_entropy(logits_TV, labels[0, 1:], reduction="sum") / predicted
        loss.backward()
        total += loss.item()
    return total, {name: part.grad for name, part in model.named_parameters()}


def together(
    folder: Path, samples: list[dict], attention: str, checkpointing: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[float, dict]:
    model = load(folder, dtype)
    assert use_packing(model, attention)
    use_chunked_loss(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = PackingCollator("token")(samples)
    batch.pop("samples")
    batch["token_weights"] = batch["token_weights"].to(dtype) / batch["token_weights"].sum()
    loss = model.train()(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: part.grad for name, part in model.named_parameters()}


def assert_equal(packed: tuple[float, dict], expected: tuple[float, dict]) -> None:
    assert packed[0] == pytest.approx(expected[0], rel=1e-5)
    assert packed[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (packed[1][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_losses_and_gradients_are_those_of_single_samples(
    tiny_model: Path, attention: str, checkpointing: bool
) -> None:
    samples = encoded(tiny_model)
    assert_equal(together(tiny_model, samples, attention, checkpointing), one_at_a_time(tiny_model, samples))


def test_it_holds_for_real_weights(smollm2: Path) -> None:
    """The gradients are in float64, because gradients of 30 layers in float32 differ by 1e-4 from those in float64."""
    samples = encoded(smollm2)[:2]
    assert_equal(
        together(smollm2, samples, "sdpa", dtype=torch.float64), one_at_a_time(smollm2, samples, torch.float64)
    )
    assert together(smollm2, samples, "sdpa")[0] == pytest.approx(one_at_a_time(smollm2, samples)[0], rel=1e-5)


def test_samples_below_each_other_as_on_a_gpu(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self: Packing, lengths: list[int], positions_N: torch.Tensor, prefixes: None) -> None:
        self.layouts, self.prefixes = [Layout(lengths, positions_N.device)], [prefixes]
        self.positions_N = positions_N

    monkeypatch.setattr(Packing, "begin", begin)
    samples = encoded(tiny_model)
    for some in (samples, [{**sample, "input_ids": sample["input_ids"][:3]} for sample in samples]):
        assert_equal(together(tiny_model, some, "sdpa"), one_at_a_time(tiny_model, some))


def test_samples_of_one_length_and_a_single_sample(tiny_model: Path) -> None:
    samples = encoded(tiny_model)
    for some in ([{**sample, "input_ids": sample["input_ids"][:3]} for sample in samples], samples[:1]):
        assert_equal(together(tiny_model, some, "sdpa"), one_at_a_time(tiny_model, some))


def test_what_is_skipped_has_no_loss(tiny_model: Path) -> None:
    samples = [{**sample, "skipped": 2} for sample in encoded(tiny_model)]
    assert_equal(together(tiny_model, samples, "sdpa"), one_at_a_time(tiny_model, samples))


def test_attention_in_16_bits_on_a_cpu_is_that_of_32_bits_rounded_once() -> None:
    """This holds under autocast too, where queries and keys of rotary models are in float32 but values are not."""
    query, key, value, gradient = torch.randn(4, 1, 6, 20, 8).bfloat16()
    exact = [states.float().requires_grad_() for states in (query, key[:, :2], value[:, :2])]
    expected = causal_sdpa(*exact, 0.0, None)
    expected.backward(gradient.float())
    for kinds in ([torch.bfloat16] * 3, [torch.float32, torch.float32, torch.bfloat16]):
        states = [part.detach().to(kind).requires_grad_() for part, kind in zip(exact, kinds)]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = causal_sdpa(*states, 0.0, None)
        assert mixed.dtype == torch.bfloat16 and torch.equal(mixed, expected.bfloat16())
        mixed.backward(gradient)
        assert all(torch.equal(part.grad, one.grad.to(part.dtype)) for part, one in zip(states, exact))


@pytest.mark.parametrize("rows", [1, 7])
def test_the_loss_is_the_same_in_chunks(tiny_llama: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = AutoModelForCausalLM.from_pretrained(tiny_llama).config.vocab_size
    monkeypatch.setattr(chunked_loss, "CHUNK", rows * vocabulary)
    samples = encoded(tiny_llama)
    assert_equal(together(tiny_llama, samples, "sdpa"), one_at_a_time(tiny_llama, samples))


def test_no_more_than_a_chunk_s_logits_exist(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    vocabulary, size = 3000, 4
    monkeypatch.setattr(chunked_loss, "CHUNK", 10 * vocabulary)
    hidden, weight = torch.randn(400, size, requires_grad=True), torch.randn(vocabulary, size, requires_grad=True)
    with Watch():
        chunked_loss.ChunkedCrossEntropy.apply(hidden, weight, torch.arange(400), torch.ones(400)).backward()
    assert largest == 10 * vocabulary


def test_a_model_without_replaceable_attention_is_padded(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.is_backend_compatible = lambda: False
    assert not use_packing(model)
    use_chunked_loss(model)
    samples = encoded(tiny_llama)
    batch = PaddingCollator("token")(samples)
    batch.pop("samples")
    batch["token_weights"] /= batch["token_weights"].sum()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    gradients = {name: part.grad for name, part in model.named_parameters()}
    assert_equal((float(loss), gradients), one_at_a_time(tiny_llama, samples))


def test_a_model_that_scales_its_logits_computes_them_all(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.config.final_logit_softcapping = 30.0
    use_chunked_loss(model)
    samples = encoded(tiny_llama)
    batch = PaddingCollator("token")(samples)
    batch.pop("samples")
    batch["token_weights"] /= batch["token_weights"].sum()
    output = model(**batch, use_cache=False)
    assert output.logits.shape == (*batch["input_ids"].shape, model.config.vocab_size)
    assert float(output.loss) == pytest.approx(one_at_a_time(tiny_llama, samples)[0], rel=1e-5)


def test_labels_are_the_next_tokens_after_what_is_skipped() -> None:
    assert next_tokens({"input_ids": [5, 6, 7], "skipped": 0}) == [6, 7, NO_LOSS]
    assert next_tokens({"input_ids": [5, 6, 7], "skipped": 1}) == [6, 7, NO_LOSS]
    assert next_tokens({"input_ids": [5, 6, 7], "skipped": 2}) == [NO_LOSS, 7, NO_LOSS]
    assert next_tokens({"input_ids": [5, 6, 7], "skipped": 3}) == [NO_LOSS] * 3
    assert next_tokens({"input_ids": [5, 6, 7], "skipped": 9}) == [NO_LOSS] * 3
    assert next_tokens({"input_ids": [5], "skipped": 0}) == [NO_LOSS]


def test_the_three_means() -> None:
    labels = [[1, 2, 3, NO_LOSS], [4, NO_LOSS]]
    assert token_weights(labels, "token") == [[1, 1, 1, 0], [1, 0]]
    assert token_weights(labels, "sample") == [[1 / 3, 1 / 3, 1 / 3, 0], [1, 0]]
    assert token_weights(labels, "batch") == [[1 / 4, 1 / 4, 1 / 4, 0], [1 / 4, 0]]


def test_a_row_has_no_padding() -> None:
    batch = PackingCollator("token")(
        [{"input_ids": row, "skipped": 0, "sample": 1} for row in ([1, 2, 3], [4], [5, 6])]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert batch["labels"].tolist() == [[2, 3, NO_LOSS, NO_LOSS, 6, NO_LOSS]]
    assert batch["lengths"].tolist() == [3, 1, 2]
