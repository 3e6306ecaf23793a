"""Paths that a full GPU takes, with a model that says on a CPU that there is no memory left."""

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.asked_models import CONTEXT, ask, gpt_neo

from teacherlm.atlas.saved_index import on_device
from teacherlm.core.errors import UserError
from teacherlm.finetune import main as finetune
from teacherlm.runtime import gpu
from teacherlm.runtime.generation import Completion, Failure, Prompt, Sampling
from teacherlm.runtime.generation.batch import Batch
from teacherlm.runtime.generation.transformers_engine import TransformersEngine
from teacherlm.runtime.memory import is_out_of_memory
from teacherlm.scoring.language_model import LanguageModel

TEXTS = ["Bees are", "The capital of France is", "Iron", "A pear tree", "Mercury", "In the year", "Rain", "Ships and"]
LONG = " ".join(["A very old pear tree stood in the garden of the house."] * 6)


def limit(model: torch.nn.Module, fits: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """Let a forward pass fail as on a full GPU unless its (rows, tokens) fit; returns those that were asked for."""
    forward, asked = model.forward, []

    @functools.wraps(forward)
    def limited(*args: object, **kwargs: object) -> object:
        asked.append(tuple(kwargs["input_ids"].shape))
        assert len(asked) < 2000, "it goes on for ever"
        if not fits(*asked[-1]):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(*args, **kwargs)

    model.forward = limited
    return asked


def engine_of(folder: Path, temperature: float = 0) -> TransformersEngine:
    return TransformersEngine(folder, "float32", Sampling(10, temperature, 1.0), batch_size=8)


def made(engine: TransformersEngine, texts: list[str]) -> list[Completion | Failure]:
    asked = (Prompt("cot_text", index, 0, text, index) for index, text in enumerate(texts))
    return sorted(engine.complete(asked), key=lambda one: one.prompt.index)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_fewer_rows_go_together_and_say_the_same(temperature: float, tiny_llama: Path) -> None:
    expected = made(engine_of(tiny_llama, temperature), TEXTS)
    engine = engine_of(tiny_llama, temperature)
    asked = limit(engine.model, lambda rows, tokens: rows <= 3)
    assert made(engine, TEXTS) == expected
    assert max(rows for rows, _ in asked) > 3
    assert engine.max_rows in (1, 2, 3)
    assert not any(isinstance(one, Failure) for one in expected)


def test_memory_that_is_short_while_rows_grow_costs_no_text(tiny_llama: Path) -> None:
    """The step fails, when rows have new tokens already; they begin anew."""
    expected = made(engine_of(tiny_llama, 1.0), TEXTS)
    engine = engine_of(tiny_llama, 1.0)
    limit(engine.model, lambda rows, tokens: tokens > 1 or rows <= 2 or engine.steps < 5)
    assert made(engine, TEXTS) == expected
    assert engine.max_rows <= 2


def test_prompts_that_fit_at_no_size_fail_alone(tiny_llama: Path) -> None:
    engine = engine_of(tiny_llama)
    long = len(engine.tokenizer(LONG)["input_ids"])
    limit(engine.model, lambda rows, tokens: tokens < long)
    texts = [*TEXTS[:2], LONG, LONG, LONG, *TEXTS[2:]]
    found = made(engine, texts)
    assert [one.prompt.index for one in found if isinstance(one, Failure)] == [2, 3, 4]
    assert found[2].reason == f"{long} tokens do not fit into the GPU's memory"
    short = made(engine_of(tiny_llama), TEXTS)
    assert [one.text for one in found if isinstance(one, Completion)] == [one.text for one in short]


def test_a_row_that_fits_does_not_fail_for_one_that_joins_it(tiny_llama: Path) -> None:
    engine = engine_of(tiny_llama)
    long = len(engine.tokenizer(LONG)["input_ids"])
    limit(engine.model, lambda rows, tokens: tokens < long)
    batch, waiting = Batch(engine), deque([engine.row_of(Prompt("cot_text", 0, 0, TEXTS[0], 0))])
    batch.admit(waiting)
    waiting.append(engine.row_of(Prompt("cot_text", 1, 0, LONG, 0)))
    assert list(engine.guarded(batch, waiting, lambda: batch.admit(waiting))) == []
    assert [row.prompt.index for row in waiting] == [0, 1]
    assert engine.max_rows == 1


def test_the_failed_pass_is_forgotten_before_the_memory_is_given_back(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside of an except clause the traceback would hold its tensors, and nothing could be given back."""
    seen = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(sys.exc_info()[0]))
    engine = engine_of(tiny_llama)
    limit(engine.model, lambda rows, tokens: rows <= 1)
    made(engine, TEXTS)
    assert seen
    assert set(seen) == {None}


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Path]:
    from support.any_models import save

    torch.manual_seed(0)
    yield save(tmp_path / "neo", gpt_neo())


def test_one_prompt_at_a_time_fails_alone(alone: Path) -> None:
    engine = engine_of(alone)
    assert engine.verdict.path == "alone"
    limit(engine.model, lambda rows, tokens: tokens < 40)
    found = made(engine, [TEXTS[0], LONG, TEXTS[1]])
    assert [type(one) for one in found] == [Completion, Failure, Completion]
    assert "do not fit into the GPU's memory" in found[1].reason


def test_scoring_says_which_batch_would_fit(tiny_llama: Path) -> None:
    model = LanguageModel(tiny_llama, None, "float32")
    model.prepare(64)
    limit(model.scored.model, lambda rows, tokens: False)
    with pytest.raises(
        UserError, match="out of memory in a batch of 4 inputs; try --batch_size 2; finished batches are kept"
    ):
        model.loglikelihood(ask(*((f"{text} {CONTEXT}", "A") for text in TEXTS[:4])))


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: out of memory"), True),  # of pinned memory, or when a context is made
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("NCCL error: unhandled cuda error. Cuda failure 'out of memory'"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_which_errors_mean_that_there_is_no_memory(error: BaseException, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def test_finetuning_proposes_a_smaller_batch() -> None:
    assert "a batch of 4 with 2 accumulated batches keeps 8 samples per step" in finetune.out_of_memory(8, 1, 8)
    assert "--gradient_checkpointing true" in finetune.out_of_memory(1, 8, 8)


def test_what_torch_keeps_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert gpu.free_memory(torch.device("cuda")) == 1300


def test_the_parts_of_an_index_are_put_into_one_tensor_of_the_device() -> None:
    parts = [torch.arange(12).view(3, 4).half(), torch.arange(20).view(5, 4).half()]
    assert torch.equal(on_device(parts, torch.device("cpu")), torch.cat(parts))
    assert on_device(parts, torch.device("meta")).shape == (8, 4)


@pytest.mark.parametrize(
    ("gib", "dtype", "tokens"), [(80, torch.bfloat16, 32768), (16, torch.bfloat16, 4096), (12, torch.bfloat16, 128)]
)
def test_the_tokens_of_a_batch_are_what_the_weights_leave(
    gib: int, dtype: torch.dtype, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of 7 billion weights, which has none on the device `meta`."""
    with torch.device("meta"):
        inner = torch.nn.Embedding(1_700_000, 4096, dtype=dtype)
    model = SimpleNamespace(get_input_embeddings=lambda: inner, parameters=inner.parameters, dtype=dtype)
    found = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    scored = SimpleNamespace(model=model, device=torch.device("cuda"))
    assert LanguageModel.tokens_at_a_time(scored) == tokens
