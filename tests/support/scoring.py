"""Shared parts of the tests of scoring: its command, and log-likelihoods by the plain forward pass."""

import functools
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def reference_likelihoods(folder: Path, prompts: list[str], choices: list[str]) -> list[dict[str, float]]:
    """The reference's loop in float64: context and choice are tokenized apart, with one forward pass per choice."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    @functools.lru_cache(maxsize=1)  # choices of one token each share their input
    def likelihoods_TV(ids: tuple[int, ...]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].log_softmax(-1)

    found = []
    for prompt in prompts:
        context = encode(prompt)
        found.append({})
        for choice in choices:
            ids = encode(choice)
            rows = likelihoods_TV(tuple((context + ids)[:-1]))[-len(ids) :]
            found[-1][choice] = sum(float(row[token]) for row, token in zip(rows, ids, strict=True))
    return found


def words(model: Path, task: str, tests: Path, output: Path, *more: object) -> list[object]:
    return ["--model_args", f"pretrained={model}", "--tasks", task, "--datasets", tests, "--output_path", output, *more]
