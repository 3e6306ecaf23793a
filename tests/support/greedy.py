"""Greedy decoding, one token at a time."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def greedy_tokens(folder: Path, text: str, count: int) -> list[int]:
    """The most likely tokens, each from a forward pass over the whole text."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids_T = tokenizer(text).input_ids
    with torch.inference_mode():
        for _ in range(count):
            ids_T.append(int(model(torch.tensor([ids_T])).logits[0, -1].argmax()))
    return ids_T[-count:]
