"""Token sequences for checking a way of computing a model."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedConfig

from teacherlm.runtime.model_config import attention_windows, position_count, vocabulary_size

SHORT = (5, 11)
MIDDLE, APART, LONG = 18, 7, 40
"""Lengths of the sequences for a model without attention windows: two short ones, a middle one, and two long ones whose
lengths differ by APART. Their remainders differ, for models that process tokens in blocks."""
STEPS = 6
"""Number of new tokens per sequence in a check of generation."""
OWN = 3
"""Number of tokens at the end of the second-to-last sequence that differ from the last sequence."""
LONGEST = 8448
"""Maximum number of tokens in a check. No text of the benchmarks here is longer."""


def make_sequences(config: PreTrainedConfig, longest: int | None = None) -> list[list[int]]:
    """Short token sequences of different lengths.

    If the model has attention windows, the last two sequences are longer than every window. The third-to-last is a
    little shorter than the longest window, so that its continuation crosses the window's border. The last two sequences
    share a prefix: the whole shorter one without its last OWN tokens. The shared prefix shows whether the model is
    causal, and it tests a path that computes shared prefixes once.

    Args:
        config: the model's configuration.
        longest: maximum number of tokens in a text of the run; None means unknown.
    """
    positions = position_count(config)
    room = None if positions is None else max(2, positions - STEPS)  # the rest is for a continuation
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
    """Length of the prefix that the last two sequences of `make_sequences` share."""
    return max(1, len(sequences[-2]) - OWN)


def window_beyond(config: PreTrainedConfig, longest: int | None) -> int | None:
    """The shortest attention window that no text of the run exceeds. A verdict is valid up to this length."""
    windows = attention_windows(config)
    return None if longest is None else min((window for window in windows if window >= longest), default=None)
