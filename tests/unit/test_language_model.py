"""The model class for choices gives lm-eval's answers, with packing, shared prefixes, cutting and fallbacks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.scoring.language_model import LanguageModel

SHOTS = "Q: Are bees insects? (A) True (B) False A: The answer is (A).\n\n" * 3
CONTEXTS = [
    *(f"Q: {word} is a fruit. (A) True (B) False A: The answer is (" for word in ("Plum", "Iron", "A very old pear")),
    *(f"{SHOTS}Q: {word} is a metal. (A) True (B) False A: The answer is (" for word in ("Plum", "Iron", "Tin")),
    "",
    "x",
]
CHOICES = ["A", "B", " a longer choice, of several tokens", " a longer one"]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0, metadata=("", 0, 1)) for one in arguments]


def hflm(folder: Path, joint: bool = True) -> HFLM:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=3, device="cpu")
    if not joint:
        theirs._encode_pair = lambda *pair: tuple(theirs.tok_encode(text, add_special_tokens=False) for text in pair)
    return theirs


def ours(folder: Path, joint: bool = True, samples: int | None = None) -> LanguageModel:
    return LanguageModel(folder, "cpu", "float32", "joint" if joint else "apart", samples)


@pytest.fixture(params=[40, 2048])
def budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The number of tokens of a batch: so few that several batches share prefixes, or enough for a single batch."""
    monkeypatch.setattr(LanguageModel, "tokens_at_a_time", lambda self: request.param)
    return request.param


@pytest.mark.parametrize("joint", [True, False])
def test_likelihoods_are_lm_evals(tiny_model: Path, joint: bool, budget: int) -> None:
    asked = requests("loglikelihood", [(context, choice) for context in CONTEXTS for choice in CHOICES])
    expected = hflm(tiny_model, joint).loglikelihood(asked, disable_tqdm=True)
    model = ours(tiny_model, joint)
    found = model.loglikelihood(asked)
    assert model.scored.verdict.path == "packed"
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_what_a_model_writes_itself_is_greedy(tiny_model: Path) -> None:
    model = ours(tiny_model)
    context = CONTEXTS[0]
    (text,) = model.generate_until(requests("generate_until", [(context, {"until": [], "max_gen_toks": 4})]))
    tokens = model.tok_encode(context)
    first = int(model.model(torch.tensor([tokens])).logits[0, -1].argmax())
    found = model._loglikelihood_tokens([(None, tokens, [first]), (None, tokens, [(first + 1) % 600])])
    assert [greedy for _, greedy in found] == [True, False]
    assert text.startswith(model.tok_decode([first]))


def test_contexts_longer_than_the_window_are_cut_at_the_left_and_counted(tiny_model: Path) -> None:
    theirs, model = hflm(tiny_model), ours(tiny_model)
    theirs._max_length = model._max_length = 32
    asked = requests("loglikelihood", [(context, choice) for context in CONTEXTS for choice in CHOICES[:3]])
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    assert [v for v, _ in model.loglikelihood(asked)] == pytest.approx([v for v, _ in expected], abs=1e-4)
    tokens = [
        len(model.tok_encode(context)) + len(model.tok_encode(choice)) for context, choice in (a.args for a in asked)
    ]
    assert 0 < model.truncated == sum(length > 33 for length in tokens) < len(asked)


def test_rolling_likelihoods_and_texts_are_lm_evals(tiny_model: Path) -> None:
    theirs, model = hflm(tiny_model), ours(tiny_model, samples=2)
    model.loglikelihood(requests("loglikelihood", [("a", "b")]))  # it packs first, so it has to change back
    texts = [(context,) for context in CONTEXTS if context] + [(CONTEXTS[3] * 12,)]
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert model.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) == pytest.approx(expected, abs=1e-3)
    asked = [(context, {"until": ["."], "max_gen_toks": 8, "do_sample": False}) for context in CONTEXTS if context]
    expected = theirs.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert model.generate_until(requests("generate_until", asked)) == expected
    again = requests("loglikelihood", [(CONTEXTS[0], "A")])
    assert model.loglikelihood(again)[0][0] == pytest.approx(
        theirs.loglikelihood(again, disable_tqdm=True)[0][0], abs=1e-4
    )


def test_a_model_whose_attention_cannot_be_replaced_is_padded(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teacherlm.scoring.scored_model.use_packing", lambda model, longest: False)
    asked = requests("loglikelihood", [(context, choice) for context in CONTEXTS for choice in CHOICES])
    model = ours(tiny_llama, samples=4)
    expected = hflm(tiny_llama).loglikelihood(asked, disable_tqdm=True)
    assert [v for v, _ in model.loglikelihood(asked)] == pytest.approx([v for v, _ in expected], abs=1e-4)
    assert model.scored.verdict.path == "padded"


def test_tokens_that_differ_between_the_two_ways_are_counted(tiny_llama: Path) -> None:
    model = ours(tiny_llama)
    model.loglikelihood(requests("loglikelihood", [("The an", "swer"), ("The answer is (", "A")]))
    one = model.tok_encode("The an") + model.tok_encode("swer") != model.tok_encode("The answer")
    assert model.looked_at == 2
    assert model.differing == one
