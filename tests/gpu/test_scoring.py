"""Scoring on a GPU: the log-probabilities of the plain forward pass in float64 on a CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.any_models import reference, save
from support.asked_models import CONTEXT, ask, words
from support.on_gpu import DTYPES, KIND, MODELS, PROMPTS, llama

pytest.importorskip("lm_eval", reason="needs lm_eval")

from teacherlm.runtime.loading import load_tokenizer
from teacherlm.scoring.language_model import LanguageModel

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("dtype", "apart"), DTYPES)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_choices_are_scored_as_by_the_plain_forward_pass(
    make: Callable, dtype: str, apart: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", make())
    contexts = [f"{prompt} {CONTEXT}" for prompt in PROMPTS]
    model = LanguageModel(folder, None, dtype)
    found = model.loglikelihood(ask(*((context, letter) for context in contexts for letter in "AB")))
    tokenizer = load_tokenizer(folder)
    for number, (value, _) in enumerate(found):
        logs = reference(folder, tokenizer(contexts[number // 2])["input_ids"])[-1]
        assert value == pytest.approx(float(logs[tokenizer("AB"[number % 2])["input_ids"][0]]), abs=apart)
    assert model.device.type == KIND
    if dtype == "float32":  # in 16 bits a path may differ by more than rounding, and the next one is taken
        assert model.scored.verdict.path == MODELS[make][1]


def test_a_prefix_that_questions_share_is_computed_once_and_right(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = save(tmp_path / "model", llama())
    examples = " ".join(f"{number}. {CONTEXT}A)." for number in range(8))
    contexts = [f"{examples} {prompt} {CONTEXT}" for prompt in PROMPTS]
    model = LanguageModel(folder, None, "float32", tokenization="apart")
    found = model.loglikelihood(ask(*((context, letter) for context in contexts for letter in "AB")))
    tokenizer = load_tokenizer(folder)
    for number, (value, _) in enumerate(found):
        logs = reference(folder, tokenizer(contexts[number // 2])["input_ids"])[-1]
        assert value == pytest.approx(float(logs[tokenizer("AB"[number % 2])["input_ids"][0]]), abs=2e-3)
    assert model.scored.kept  # it was computed as a prefix


def test_the_batch_is_as_large_as_the_gpu_allows(tmp_path: Path) -> None:
    model = LanguageModel(save(tmp_path / "model", llama()), None, "float32")
    assert model.tokens_at_a_time() == {"cuda": 32768, "cpu": 2**19 // 32}[KIND]


def test_the_stage_s_program_writes_results(prepared: Path, inside: Callable, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", llama())
    result = inside("evaluate", *words("evaluate", folder, prepared, tmp_path))
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "results").rglob("*.json"))
