"""What the tests marked `gpu` share. Without a GPU `pytest -m gpu` rehearses on the CPU those that do not need one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from support.any_models import SIZES, llama_config, reference, save
from support.asked_models import gemma2, gemma3, gpt_neo
from support.programs import ROOT, program

KIND = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(KIND == "cpu", reason="needs a GPU: make check-gpu")
needs_units_for_bfloat16 = pytest.mark.skipif(
    KIND == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False), reason="no units for bfloat16"
)
DTYPES = [
    pytest.param("float32", 2e-3, id="float32"),
    pytest.param("float16", 0.2, id="float16"),
    pytest.param("bfloat16", 1.0, id="bfloat16", marks=needs_units_for_bfloat16),
]
"""Each with how far a log-probability may be from the one in float64, of models whose logits are spread widely."""
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


MODELS: dict[Callable[[], transformers.PreTrainedModel], tuple[str, str]] = {
    llama: ("batched", "packed"),
    bloom: ("batched", "packed"),
    mistral: ("batched", "padded"),
    gemma2: ("batched", "padded"),
    gemma3: ("batched", "padded"),
    gpt_neo: ("alone", "padded"),
}
"""Each with the ways in which it is to be computed as a teacher and when it is scored: rotary positions with grouped
heads, ALiBi, a sliding window, capped scores, windows in some layers, windows of another kind."""


def large_llama(folder: Path) -> Path:
    """A model whose keys and values take 16 KiB a token in float32, with some 50 MiB of weights."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
    config = llama_config(**sizes, num_key_value_heads=8, max_position_embeddings=2048)
    torch.manual_seed(0)
    return save(folder, transformers.LlamaForCausalLM(config))


def below_the_best(folder: Path, prompt: list[int], new: list[int]) -> float:
    """How far a new token's log-probability is at most below the likeliest one's, by the plain forward pass."""
    logs_TV = reference(folder, [*prompt, *new])[len(prompt) - 1 : -1]
    chosen_T = logs_TV.gather(1, torch.tensor(new)[:, None])[:, 0]
    return float((logs_TV.max(-1).values - chosen_T).max())


def run_stage(name: str, *words: object, **variables: str) -> subprocess.CompletedProcess:
    """Run a stage in a new process: a fork of one that has asked CUDA for its devices could not use them.

    Args:
        variables: of its environment, beside those of this process but for a launcher's.
    """
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in launched}
    environment["PYTHONPATH"] = f"{ROOT / 'src'}:{ROOT / 'tests'}"
    command = [sys.executable, *program(name), *map(str, words)]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True)
