"""The token sequences that a way of computing a model is checked with."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

from teacherlm.runtime.model_config import attention_windows, position_count, vocabulary_size

SHORT = (5, 11)
MIDDLE, APART, LONG = 18, 7, 40
"""Lengths of the sequences for a model without attention windows: the short ones, a middle one, and two long ones that
are so far apart. They leave different remainders, for models that see tokens in blocks."""
STEPS = 6
"""New tokens of each sequence in a check of generation."""
OWN = 3
"""Tokens at the end of the last sequence but one that it does not share with the last one."""
LONGEST = 8448
"""Tokens of the longest check. A longer window is not reached by the texts of any benchmark here."""


def make_sequences(config: PreTrainedConfig, longest: int | None = None) -> list[list[int]]:
    """Short token sequences of different lengths.

    Of a model with attention windows the last two are longer than these; the one before them is a little shorter than
    the longest window, so that its continuation crosses it. The last two have all tokens in common but the last OWN of
    the shorter one, which shows whether a model is causal and serves a path that computes shared prefixes once.

    Args:
        config: the model's.
        longest: number of tokens that no text of the run exceeds; None: unknown.
    """
    positions = position_count(config)
    room = None if positions is None else max(2, positions - STEPS)  # for a continuation
    bounds = [bound for bound in (room, window_beyond(config, longest), LONGEST) if bound is not None]
    windows = [window for window in attention_windows(config) if longest is None or window < longest]
    middle = max([MIDDLE, *(window - 2 for window in windows)])
    long = max([LONG, *(window + 2 * APART + 1 for window in windows)])
    lengths = [*SHORT, middle, long - APART, long]
    text = config.get_text_config()
    special = {getattr(text, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    rows = vocabulary_size(config) or 2
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for length in lengths:
        drawn = torch.randint(rows, (4 * min([length, *bounds]),), generator=generator).tolist()
        usual = [token for token in drawn if token not in special] or drawn
        sequences.append((usual * 4)[: min([length, *bounds])])
    *_, other, last = sequences
    shared = shared_length(sequences)
    first = next((token for token in other if token != last[shared]), other[0])
    sequences[-2] = [*last[:shared], first, *other[shared + 1 :]]
    return sequences


def shared_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens the last two of `make_sequences` have in common at their beginning."""
    return max(1, len(sequences[-2]) - OWN)


def window_beyond(config: PreTrainedConfig, longest: int | None) -> int | None:
    """The shortest attention window that no text of the run exceeds: a verdict holds up to it."""
    windows = attention_windows(config)
    return None if longest is None else min((window for window in windows if window >= longest), default=None)
