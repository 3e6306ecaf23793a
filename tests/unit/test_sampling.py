"""The teacher's engine: a text depends on its record and seed but not on its batch, and tokens follow the softmax."""

import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from support.files import sample_claims
from support.greedy import greedy_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.enhance.asking import draw_seed
from teacherlm.runtime.generation import Completion, Prompt, Sampling
from teacherlm.runtime.generation.transformers_engine import TransformersEngine
from teacherlm.runtime.sampling import choose_tokens, keep_nucleus

LOGITS_V = torch.tensor([2.0, 1.5, 1.0, 0.0, -0.5, -1.0, 0.7, -4.0])


def asked(seed: int, count: int = 10) -> list[Prompt]:
    texts = [claim["sentence"] for claim in sample_claims()][:count]
    return [Prompt("cot_text", i, 0, text, draw_seed(seed, i, 0, text)) for i, text in enumerate(texts)]


def completions(engine: TransformersEngine, seed: int, rows: int) -> list[str]:
    engine.max_rows = rows
    done = {completion.prompt.index: completion for completion in engine.complete(iter(asked(seed)))}
    return [done[index].text for index in range(10)]


@pytest.mark.parametrize("sampling", [Sampling(12, 1.0, 1.0), Sampling(12, 0.8, 0.9), Sampling(12, 0, 1.0)])
def test_texts_do_not_depend_on_the_batch(tiny_model: Path, sampling: Sampling) -> None:
    engine = TransformersEngine(tiny_model, "float32", sampling)
    alone = completions(engine, 0, 1)
    assert completions(engine, 0, 4) == alone
    assert completions(engine, 0, 10) == alone


def test_texts_are_those_of_generate(tiny_model: Path) -> None:
    """The batch, whose rows are replaced while it runs, compared with the library's loop for each prompt alone."""
    engine = TransformersEngine(tiny_model, "float32", Sampling(20, 0, 1.0), batch_size=3)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    for completion in engine.complete(iter(asked(0))):
        ids = tokenizer(completion.prompt.text, return_tensors="pt").input_ids
        expected = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True)


def test_rows_that_outgrow_the_memory_wait_and_come_out_the_same(tiny_model: Path) -> None:
    engine = TransformersEngine(tiny_model, "float32", Sampling(30, 1.0, 1.0))
    expected = completions(engine, 0, 10)
    roomy = engine.steps
    engine.memory = 2 * 3 * 50 * engine.column_bytes
    assert completions(engine, 0, 10) == expected
    assert engine.steps - roomy > roomy  # rows really had to wait


def test_texts_depend_on_the_seed(tiny_llama: Path) -> None:
    engine = TransformersEngine(tiny_llama, "float32", Sampling(12, 1.0, 1.0))
    assert all(one != other for one, other in zip(completions(engine, 0, 10), completions(engine, 1, 10)))


def test_temperature_0_takes_the_likeliest_token_each_time(tiny_llama: Path) -> None:
    engine = TransformersEngine(tiny_llama, "float32", Sampling(12, 0, 1.0))
    (completion,) = engine.complete(iter([Prompt("cot_text", 0, 0, "The moon is", 0)]))
    assert completion.text == engine.tokenizer.decode(greedy_tokens(tiny_llama, "The moon is", 12))


def draws(temperature: float, top_p: float, count: int) -> torch.Tensor:
    """How often each token is drawn over many rows, each with the generator of its record."""
    generators = [torch.Generator().manual_seed(draw_seed(0, index, 0, "")) for index in range(2000)]
    logits_BV = LOGITS_V.expand(len(generators), -1)
    chosen = [choose_tokens(logits_BV, generators, temperature, top_p) for _ in range(count // len(generators))]
    return torch.bincount(torch.cat(chosen), minlength=len(LOGITS_V))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_drawn_with_the_softmax_s_probabilities(temperature: float) -> None:
    counts_V = draws(temperature, 1.0, 40_000)
    expected_V = (LOGITS_V.double() / temperature).softmax(-1) * 40_000
    assert scipy.stats.chisquare(counts_V, expected_V).pvalue > 1e-3


def test_tokens_outside_the_nucleus_are_never_drawn() -> None:
    counts_V = draws(1.0, 0.6, 40_000)
    inside_V = torch.tensor(nucleus(LOGITS_V.tolist(), 0.6))
    assert not counts_V[~inside_V].any()
    expected_V = LOGITS_V[inside_V].double().softmax(-1) * 40_000
    assert scipy.stats.chisquare(counts_V[inside_V], expected_V).pvalue > 1e-3


def nucleus(logits: list[float], top_p: float) -> list[bool]:
    """Nucleus sampling in plain Python: the likeliest tokens in order until their probabilities reach top_p."""
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

    engine = TransformersEngine(tmp_path, "float32", Sampling(12, 0, 1.0))
    prompts = [Prompt("cot_text", 0, 0, "The moon is", 0), Prompt("cot_text", 1, 0, "Snow", 0)]
    completion, other = engine.complete(iter(prompts))
    assert (completion.text, completion.new_tokens) == (expected, tokens.index(end) + 1)
    assert other.new_tokens == 12  # the batch continued


def test_a_stop_text_ends_a_completion_and_is_not_in_it(tiny_llama: Path) -> None:
    (whole,) = TransformersEngine(tiny_llama, "float32", Sampling(20, 0, 1.0)).complete(iter(asked(0, 1)))
    stop = whole.text[5:8]
    (cut,) = TransformersEngine(tiny_llama, "float32", Sampling(20, 0, 1.0, (stop,))).complete(iter(asked(0, 1)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.new_tokens < whole.new_tokens


def test_a_prompt_that_leaves_the_window_no_room_fails_alone(tiny_llama: Path) -> None:
    engine = TransformersEngine(tiny_llama, "float32", Sampling(4, 0, 1.0))
    long = Prompt("cot_text", 0, 0, "moon " * 600, 0)
    failure, done = engine.complete(iter([long, *asked(0, 1)]))
    assert "the model's window is 512" in failure.reason
    assert isinstance(done, Completion)
