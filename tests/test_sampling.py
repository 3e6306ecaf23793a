"""The teacher's engine: a text depends on its record and seed, not on its batch, and tokens follow the softmax."""

import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from conftest import sample_claims
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers_engine import Prompt, RecordSampler, Sampling, TransformersEngine, keep_nucleus

from enhance import record_seed

LOGITS_V = torch.tensor([2.0, 1.5, 1.0, 0.0, -0.5, -1.0, 0.7, -4.0])


def completions(engine: TransformersEngine, seed: int, batch_size: int) -> list[str]:
    texts = [claim["sentence"] for claim in sample_claims()][:10]
    prompts = [Prompt(index, text, record_seed(seed, index, text)) for index, text in enumerate(texts)]
    batches = [prompts[start : start + batch_size] for start in range(0, len(prompts), batch_size)]
    return [completion.text for batch in batches for completion in engine.complete(batch)]


@pytest.mark.parametrize("sampling", [Sampling(12, 1.0, 1.0, 0), Sampling(12, 0.8, 0.9, 0), Sampling(12, 0, 1.0, 0)])
def test_texts_do_not_depend_on_the_batch(tiny_model: Path, sampling: Sampling) -> None:
    engine = TransformersEngine(tiny_model, "float32", sampling)
    alone = completions(engine, 0, 1)
    assert completions(engine, 0, 4) == alone
    assert completions(engine, 0, 10) == alone


def test_texts_depend_on_the_seed(tiny_llama: Path) -> None:
    engine = TransformersEngine(tiny_llama, "float32", Sampling(12, 1.0, 1.0, 0))
    assert all(one != other for one, other in zip(completions(engine, 0, 10), completions(engine, 1, 10)))


def greedy_tokens(folder: Path, text: str, count: int) -> list[int]:
    """The likeliest token after another, one forward of all of the text each."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids_T = tokenizer(text).input_ids
    with torch.inference_mode():
        for _ in range(count):
            ids_T.append(int(model(torch.tensor([ids_T])).logits[0, -1].argmax()))
    return ids_T[-count:]


def test_temperature_0_takes_the_likeliest_token_each_time(tiny_llama: Path) -> None:
    engine = TransformersEngine(tiny_llama, "float32", Sampling(12, 0, 1.0, 0))
    (completion,) = engine.complete([Prompt(0, "The moon is", 0)])
    assert completion.text == engine.tokenizer.decode(greedy_tokens(tiny_llama, "The moon is", 12))


def draws(logits_V: torch.Tensor, sampling: Sampling, count: int) -> torch.Tensor:
    """How often each token is drawn, over rows that each have their own record's generator."""
    prompts = [Prompt(index, "", record_seed(0, index, "")) for index in range(2000)]
    sampler = RecordSampler(prompts, sampling, torch.device("cpu"))
    scores_BV = logits_V.expand(len(prompts), -1)
    chosen = [sampler(None, scores_BV).argmax(-1) for _ in range(count // len(prompts))]
    return torch.bincount(torch.cat(chosen), minlength=len(logits_V))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_drawn_with_the_softmax_s_probabilities(temperature: float) -> None:
    counts_V = draws(LOGITS_V, Sampling(1, temperature, 1.0, 0), 40_000)
    expected_V = (LOGITS_V.double() / temperature).softmax(-1) * 40_000
    assert scipy.stats.chisquare(counts_V, expected_V).pvalue > 1e-3


def test_tokens_outside_the_nucleus_are_never_drawn() -> None:
    counts_V = draws(LOGITS_V, Sampling(1, 1.0, 0.6, 0), 40_000)
    inside_V = torch.tensor(nucleus(LOGITS_V.tolist(), 0.6))
    assert not counts_V[~inside_V].any()
    expected_V = LOGITS_V[inside_V].double().softmax(-1) * 40_000
    assert scipy.stats.chisquare(counts_V[inside_V], expected_V).pvalue > 1e-3


def nucleus(logits: list[float], top_p: float) -> list[bool]:
    """In plain Python: the likeliest tokens one after the other, until their probabilities reach top_p."""
    total = sum(map(math.exp, logits))
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    kept, reached = set(), 0.0
    for token in order:
        if reached >= top_p:
            break
        kept.add(token)
        reached += math.exp(logits[token]) / total
    return [token in kept for token in range(len(logits))]


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.75, 0.99])
def test_the_nucleus_is_that_of_a_plain_twin(top_p: float) -> None:
    logits_BV = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 3
    kept_BV = keep_nucleus(logits_BV, top_p).isfinite()
    assert kept_BV.tolist() == [nucleus(row, top_p) for row in logits_BV.tolist()]


@pytest.mark.parametrize("special", [True, False])
def test_the_end_of_text_ends_a_completion_and_is_not_in_it(tiny_llama: Path, tmp_path: Path, special: bool) -> None:
    tokens = greedy_tokens(tiny_llama, "The moon is", 12)
    end = tokens[5]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    expected = tokenizer.decode(tokens[: tokens.index(end)])
    if special:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    model.generation_config.eos_token_id = end
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)

    engine = TransformersEngine(tmp_path, "float32", Sampling(12, 0, 1.0, 0))
    completion, other = engine.complete([Prompt(0, "The moon is", 0), Prompt(1, "Snow", 0)])
    assert (completion.text, completion.tokens) == (expected, tokens.index(end) + 1)
    assert other.tokens == 12  # the batch went on
