"""Make a small T5 with random weights that learns from few examples to look things up, and a tokenizer for given words.

A T5 with ordinary random weights needs many steps before it compares a passage with the options, and until then its
loss does not improve. Two properties of the initial weights save most of these steps. The query weights are the scaled
key weights, so that a token attends to equal tokens from the first step (Trockman & Kolter 2023, "Mimetic
initialization of self-attention layers", arXiv 2305.09828). The biases of relative positions are large, so that each
head attends to different positions.
"""

import string
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

LIKENESS = 0.2
"""The factor between key weights and query weights."""
POSITIONS = 2.0
"""Standard deviation of the biases of relative positions."""
SENTINELS = 10


def make_reader(folder: Path, words: Iterable[str], syllables: Iterable[str], seed: int) -> None:
    """Save a T5 of 3 encoder layers and one decoder layer, and a tokenizer.

    Args:
        words: the words that are one token each.
        syllables: the syllables of which all other words (names) consist.
    """
    tokenizer = make_tokenizer(words, syllables)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=16,
        d_ff=256,
        num_layers=3,
        num_decoder_layers=1,
        num_heads=8,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(config)
    blocks = model.encoder.block
    with torch.no_grad():
        for block in blocks:
            attention = block.layer[0].SelfAttention
            attention.q.weight.copy_(LIKENESS * attention.k.weight)
        nn.init.normal_(blocks[0].layer[0].SelfAttention.relative_attention_bias.weight, std=POSITIONS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(words: Iterable[str], syllables: Iterable[str]) -> T5Tokenizer:
    """A tokenizer of T5's kind: it splits a text into the pieces with the highest total score."""
    pieces = {"▁": -8.0, "▁(": -4.0} | dict.fromkeys(string.ascii_letters + string.digits + string.punctuation, -9.0)
    for syllable in syllables:
        pieces |= {syllable: -5.0, f"▁{syllable.capitalize()}": -5.0}
    pieces |= dict.fromkeys((f"▁{word}" for word in words), -4.0)
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(SENTINELS))]
    return T5Tokenizer(vocab=[*special, *pieces.items(), *sentinels], extra_ids=SENTINELS)
