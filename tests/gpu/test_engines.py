"""Teachers on a GPU: the tokens that the plain forward pass on a CPU finds likeliest, in each dtype, by each engine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from support.any_models import HEADS_OF_64, llama_config, save
from support.asked_models import generated, likeliest
from support.files import read_lines
from support.on_gpu import DTYPES, KIND, MODELS, PROMPTS, below_the_best, llama, needs_gpu, run_stage

from teacherlm.runtime.generation import Completion, Prompt, Sampling
from teacherlm.runtime.generation.transformers_engine import TransformersEngine
from teacherlm.runtime.loading import load_tokenizer
from teacherlm.runtime.sampling import choose_tokens
from teacherlm.runtime.tokens import encode_prompt

pytestmark = pytest.mark.gpu


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    torch.manual_seed(0)
    return save(tmp_path / "model", request.param()), MODELS[request.param][0]


def new_tokens(engine: TransformersEngine, prompts: list[str]) -> dict[int, tuple[list[int], list[int]]]:
    """The tokens of each prompt, and those that the engine writes after it."""
    found, completion = {}, engine.completion

    def kept(row: object) -> Completion:
        found[row.prompt.index] = (list(row.tokens), list(row.new))
        return completion(row)

    engine.completion = kept
    assert len(list(engine.complete(Prompt("cot_text", n, 0, text, n) for n, text in enumerate(prompts)))) == len(found)
    return found


def test_it_writes_what_the_plain_forward_pass_writes(made: tuple[Path, str]) -> None:
    folder, path = made
    found, texts = generated(folder, PROMPTS)
    assert found == path
    assert texts == [likeliest(folder, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize(("dtype", "apart"), DTYPES[1:])
def test_in_16_bits_it_takes_tokens_that_are_as_likely_but_for_rounding(
    dtype: str, apart: float, made: tuple[Path, str]
) -> None:
    folder, _ = made
    engine = TransformersEngine(folder, dtype, Sampling(12, 0, 1.0), batch_size=3)
    assert engine.device.type == KIND
    found = new_tokens(engine, PROMPTS)
    assert len(found) == len(PROMPTS)
    for tokens, new in found.values():
        assert below_the_best(folder, tokens, new) < 2 * apart


def test_sampled_texts_do_not_depend_on_the_rows_beside_them(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", llama())
    prompts = [f"{number}. {text}" for number in range(8) for text in PROMPTS]
    written = []
    for rows in (1, 5, 32):
        engine = TransformersEngine(folder, "float32", Sampling(16, 1.0, 0.9), batch_size=rows)
        written.append(new_tokens(engine, prompts))
    assert written[0] == written[1] == written[2]


def test_drawn_tokens_have_the_probabilities_of_the_softmax() -> None:
    logits_V = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5], device=KIND)
    count = 6000
    generators = [torch.Generator(KIND).manual_seed(seed) for seed in range(count)]
    chosen = choose_tokens(logits_V.expand(count, -1).clone(), generators, 1.0, 1.0).cpu()
    expected = logits_V.cpu().double().softmax(-1)
    deviation = (expected * (1 - expected) / count).sqrt()
    found = torch.bincount(chosen, minlength=5) / count
    assert ((found - expected).abs() < 5 * deviation).all(), found


def test_the_dtype_is_one_that_it_computes_in(tmp_path: Path) -> None:
    engine = TransformersEngine(save(tmp_path / "model", llama()), "auto", Sampling(3, 0, 1.0))
    assert engine.dtype in {"cuda": ("bfloat16", "float16"), "cpu": ("float32", "bfloat16")}[KIND]
    assert engine.memory > 2**28


@needs_gpu
def test_int8_takes_tokens_that_are_nearly_as_likely(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    torch.manual_seed(0)
    folder = save(tmp_path / "model", transformers.LlamaForCausalLM(llama_config(hidden_size=64, head_dim=16)))
    engine = TransformersEngine(folder, "int8", Sampling(8, 0, 1.0), batch_size=2)
    found = new_tokens(engine, PROMPTS)
    assert len(found) == len(PROMPTS)
    assert sum(below_the_best(folder, tokens, new[:1]) < 2.0 for tokens, new in found.values()) >= 3


@needs_gpu
def test_vllm_begins_with_tokens_that_are_as_likely(prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs vllm: pip install -e .[gpu]")
    torch.manual_seed(0)
    folder = save(tmp_path / "model", transformers.LlamaForCausalLM(llama_config(**HEADS_OF_64)))
    words = ["--name", folder, "--input", prepared / "SAMPLE.jsonl", "--output", tmp_path / "out.jsonl"]
    words += ["--task_type", "cot_text", "--num_tokens", 8, "--temperature", 0, "--engine", "vllm"]
    done = run_stage("enhance", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    tokenizer = load_tokenizer(folder)
    records = read_lines(tmp_path / "out.jsonl")
    assert len(records) == 24
    for record in records[:6]:
        tokens = encode_prompt(tokenizer, record["cot_text"])
        if new := tokenizer(record["cot"], add_special_tokens=False)["input_ids"][:1]:
            assert below_the_best(folder, tokens, new) < 2.0


@needs_gpu
def test_texts_by_vllm_do_not_depend_on_the_texts_beside_them(prepared: Path, tmp_path: Path) -> None:
    """All records in one call, and in three shards, in vLLM's batch-invariant mode."""
    pytest.importorskip("vllm", reason="needs vllm: pip install -e .[gpu]")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("vLLM's batch-invariant mode needs a GPU of compute capability 8.0 or higher")
    torch.manual_seed(0)
    folder = save(tmp_path / "model", transformers.LlamaForCausalLM(llama_config(**HEADS_OF_64)))
    words = ["--name", folder, "--input", prepared / "SAMPLE.jsonl", "--output", tmp_path / "out.jsonl"]
    words += ["--task_type", "cot_text", "--num_tokens", 32, "--engine", "vllm"]
    for more in ([], *(["--shard", f"{index}/3"] for index in range(3))):
        done = run_stage("enhance", *words, *more)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "(batch-invariant)" in done.stdout
    whole = read_lines(tmp_path / "out.jsonl")
    parts = [read_lines(tmp_path / f"out.shard-{index}-of-3.jsonl") for index in range(3)]
    assert [parts[number % 3][number // 3] for number in range(len(whole))] == whole


def test_the_stage_s_program_writes_all_records(prepared: Path, inside: Callable, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", llama())
    words = ["--name", folder, "--input", prepared / "SAMPLE.jsonl", "--output", tmp_path / "out.jsonl"]
    result = inside("enhance", *words, "--task_type", "cot_text", "--num_tokens", 4)
    assert result.returncode == 0, result.stderr
    assert len(read_lines(tmp_path / "out.jsonl")) == 24
