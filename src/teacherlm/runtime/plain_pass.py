"""The library's plain forward pass: eager attention, one sequence at a time, no padding, no cache."""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from teacherlm.runtime.compat.of_transformers import attention_of, can_switch_attention, set_attention_name
from teacherlm.runtime.loading import base_model

COMPARED = 12
"""Number of positions at the end of each sequence whose logits are compared."""


@torch.inference_mode()
def plain_logits(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], last: int = COMPARED
) -> list[torch.Tensor]:
    """Logits [at most `last`, V] of the last positions of each sequence, in float32 on the CPU.

    The model computes one sequence at a time.
    """
    kwargs = plain_arguments(model, last)
    logits = []
    for tokens in sequences:
        outputs = model(input_ids=torch.tensor([list(tokens)], device=model.device), **kwargs)
        logits.append(outputs.logits[0, -last:].float().cpu())
    return logits


def plain_arguments(model: PreTrainedModel, last: int = COMPARED) -> dict[str, Any]:
    """Arguments for a model's forward, as far as it takes them: no cache, and logits of the last positions only."""
    known = inspect.signature(base_model(model).forward).parameters
    hands_on = any(one.kind is one.VAR_KEYWORD for one in known.values())  # passed on to an inner model with a cache
    kwargs: dict[str, Any] = {"use_cache": False} if "use_cache" in known or hands_on else {}
    return kwargs | ({"logits_to_keep": last} if "logits_to_keep" in known else {})


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Set the library's attention of a model, even if the library does not support switching it."""
    inner = base_model(model)
    if can_switch_attention(inner):
        inner.set_attn_implementation(name)
    else:
        set_attention_name(inner.config, name)


@contextlib.contextmanager
def attention_set(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within the block, compute with another of the library's attentions."""
    before = attention_of(base_model(model).config)
    if before == name:
        yield
        return
    set_attention(model, name)
    try:
        yield
    finally:
        set_attention(model, before)
