"""A GPU that is too small: fewer rows go together and say the same; training and scoring say what would fit."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.asked_models import CONTEXT, ask, words
from support.files import sample_claims
from support.on_gpu import large_llama, needs_gpu

from teacherlm.core.errors import UserError
from teacherlm.finetune.launch import OUT_OF_MEMORY
from teacherlm.runtime.generation import Completion, Failure, Prompt, Sampling
from teacherlm.runtime.generation.transformers_engine import TransformersEngine

pytestmark = [pytest.mark.gpu, needs_gpu]
MIB = 2**20


@pytest.fixture
def tight() -> Iterator[Callable[[int], None]]:
    """Let torch have so many bytes of the GPU beside those that it holds now: tight(400 * MIB)."""

    def limit(more: int) -> None:
        give_back()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    give_back()


def give_back() -> None:
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_llama(tmp_path_factory.mktemp("large") / "model")


def long_prompts(count: int) -> list[str]:
    claims = [claim["sentence"] for claim in sample_claims()]
    return [" ".join(claims[(number + place) % len(claims)] for place in range(16)) for number in range(count)]


def written(engine: TransformersEngine, prompts: list[str]) -> list[Completion | Failure]:
    asked = (Prompt("cot_text", number, 0, prompt, number) for number, prompt in enumerate(prompts))
    return sorted(engine.complete(asked), key=lambda made: made.prompt.index)


def test_a_teacher_halves_its_batch_and_writes_the_same(large: Path, tight: Callable) -> None:
    prompts = long_prompts(128)
    engine = TransformersEngine(large, "float32", Sampling(8, 0, 1.0), batch_size=128)
    expected = written(engine, prompts)
    assert engine.max_rows == 128
    tight(400 * MIB)  # their keys and values alone are more than that
    found = written(engine, prompts)
    assert 1 <= engine.max_rows < 128
    assert [one.text for one in found] == [one.text for one in expected]


def test_a_prompt_that_fits_at_no_size_fails_alone(large: Path, tight: Callable) -> None:
    engine = TransformersEngine(large, "float32", Sampling(4, 0, 1.0), batch_size=4)
    tight(16 * MIB)
    found = written(engine, ["Bees are", long_prompts(1)[0], "Iron"])
    assert [type(one) for one in found] == [Completion, Failure, Completion]
    assert "do not fit into the GPU's memory" in found[1].reason


def test_a_training_says_which_batch_keeps_the_step(
    large: Path, tight: Callable, prepared: Path, inside: Callable, tmp_path: Path
) -> None:
    tight(40 * MIB)  # not even its weights fit
    result = inside("finetune", *words("finetune", large, prepared, tmp_path))
    assert result.returncode == OUT_OF_MEMORY, result.stderr
    assert (
        "out of memory with 8 samples at a time; a batch of 4 with 2 accumulated batches keeps 8 samples per step"
        in result.stderr
    )


def test_scoring_says_which_batch_fits(large: Path, tight: Callable) -> None:
    pytest.importorskip("lm_eval", reason="needs lm_eval")
    from teacherlm.scoring.language_model import LanguageModel

    model = LanguageModel(large, None, "float32")
    model.prepare(2048)
    tight(16 * MIB)
    with pytest.raises(UserError, match="out of memory in a batch of 32 inputs; --batch_size 16 takes fewer than 32"):
        model.loglikelihood(ask(*((f"{prompt} {CONTEXT}", "A") for prompt in long_prompts(32))))
