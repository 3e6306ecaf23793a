"""Attention for one new token per row: the query heads of a group are the rows of one matrix product.

With grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) several query heads share one key-value head. The
library repeats keys and values for each query head. Here the heads of a group take the place of the positions of a
longer query. On a CPU, two batched products are several times as fast as torch's fused kernel, which is made for long
queries. The measurements are in docs/measurements/enhance.md.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from teacherlm.runtime.compat.of_transformers import attention_of

NAME = "sdpa_decode"


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for one new token per row. Longer queries are passed to the library.

    Args:
        query: [B, heads, Q, D].
        key, value: [B, groups, T, D]; the size D of values may differ from that of keys.
        attention_mask: [B, 1, Q, T], true at the keys that a query sees; None means all keys.

    Returns:
        ([B, Q, heads, D], None); the second value stands for the attention weights, which are not kept.
    """
    rows, heads, length, size = query.shape
    if length > 1 or kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups = key.shape[1]
    folded = query.reshape(rows, groups, heads // groups, size)
    scaling = size**-0.5 if scaling is None else scaling
    if has_fused_kernel(query.device):
        mixed = torch.nn.functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=attention_mask, scale=scaling
        )
    else:
        scores = (folded @ key.transpose(2, 3)).float() * scaling
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, -torch.inf)
        mixed = scores.softmax(-1).to(value.dtype) @ value
    return mixed.reshape(rows, 1, heads, value.shape[-1]), None


def has_fused_kernel(device: torch.device) -> bool:
    """Whether torch's fused kernel is quick for one query as well."""
    return device.type == "cuda"


def use_decode_attention(model: PreTrainedModel) -> None:
    """Let a model use `attend` if the library would use sdpa. Other models stay unchanged."""
    if attention_of(model.config) == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
