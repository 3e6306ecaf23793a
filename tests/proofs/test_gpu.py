"""The three stages on a GPU give the same numbers as the plain forward pass on a CPU. `make check-gpu` runs this."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from support.any_models import SIZES, llama_config, reference, save
from support.asked_models import CONTEXT, ask, gemma2, gemma3, generated, gpt_neo, likeliest, words
from support.files import read_lines

from teacherlm.enhance.engines import Sampling
from teacherlm.enhance.engines.transformers_engine import TransformersEngine
from teacherlm.runtime.loading import load_tokenizer
from teacherlm.scoring.language_model import LanguageModel

pytestmark = pytest.mark.gpu
PROMPTS = ["Bees are", "The capital of France is a city on the river", "Iron", "A very old pear tree stood in it"]


def llama() -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(llama_config())


def bloom() -> transformers.PreTrainedModel:
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=600, hidden_size=32, n_layer=2, n_head=4, **ends)
    )


def mistral() -> transformers.PreTrainedModel:
    return transformers.MistralForCausalLM(transformers.MistralConfig(vocab_size=600, **SIZES, sliding_window=8))


MODELS = {
    llama: ("batched", "packed"),
    bloom: ("batched", "packed"),
    mistral: ("batched", "padded"),
    gemma2: ("batched", "padded"),
    gemma3: ("batched", "padded"),
    gpt_neo: ("alone", "padded"),
}
"""Model -> (expected path as a teacher, expected path when it is scored)."""


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, str]:
    torch.manual_seed(0)
    return save(tmp_path / "model", request.param()), *MODELS[request.param]


def test_a_teacher_writes_what_the_plain_forward_pass_writes(made: tuple[Path, str, str]) -> None:
    folder, teacher, _ = made
    path, texts = generated(folder, PROMPTS)
    assert path == teacher
    assert texts == [likeliest(folder, prompt) for prompt in PROMPTS]
    engine = TransformersEngine(folder, "bfloat16", Sampling(3, 0, 1.0))
    assert (engine.device.type, engine.verdict.path) == ("cuda", teacher)


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 2e-3), ("bfloat16", 1.0)])
def test_choices_are_scored_as_by_the_plain_forward_pass(dtype: str, apart: float, made: tuple[Path, str, str]) -> None:
    folder, _, scored = made
    contexts = [f"{prompt} {CONTEXT}" for prompt in PROMPTS]
    model = LanguageModel(folder, None, dtype)
    found = model.loglikelihood(ask(*((context, letter) for context in contexts for letter in "AB")))
    tokenizer = load_tokenizer(folder)
    for number, (value, _) in enumerate(found):
        logs = reference(folder, tokenizer(contexts[number // 2])["input_ids"])[-1]
        assert value == pytest.approx(float(logs[tokenizer("AB"[number % 2])["input_ids"][0]]), abs=apart)
    assert (model.device.type, model.scored.verdict.path) == ("cuda", scored)


def test_a_student_has_the_loss_of_the_plain_forward_pass(
    made: tuple[Path, str, str], prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    folder, _, scored = made
    flags = [*words("finetune", folder, prepared, tmp_path), "--max_train_samples", 4, "--learning_rate", 1e-9]
    result = inside("finetune", *flags, "--logging_steps", 1, "--bf16", "true")
    assert result.returncode == 0, result.stderr
    assert ("trained in padded batches" in result.stdout) == (scored == "padded")
    tokenizer = load_tokenizer(folder)
    rows = tokenizer([sample["text"] for sample in read_lines(prepared / "SAMPLE.jsonl")[:4]])["input_ids"]
    losses = [reference(folder, ids)[:-1].gather(1, torch.tensor(ids)[1:, None]) for ids in rows]
    (line,) = read_lines(tmp_path / "run" / "log.jsonl")
    assert line["loss"] == pytest.approx(-float(torch.cat(losses).mean()), rel=2e-2)
