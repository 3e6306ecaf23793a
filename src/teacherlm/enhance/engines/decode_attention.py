"""Attention of one new token a row: the query heads of a group as the rows of one matrix product.

With grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) several query heads share one key-value head. The
library repeats keys and values for each of them; here the heads of a group stand where the positions of a longer query
would. On a CPU two batched products are several times as fast as torch's fused kernel, which is made for long queries:
docs/measurements/enhance.md has the figures.
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
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one new token a row; of longer queries as the library computes it.

    Args:
        query: [B, heads, Q, D].
        key, value: [B, groups, T, D]; values may be of another size than keys.
        attention_mask: [B, 1, Q, T], true where to attend; None: everywhere.

    Returns:
        ([B, Q, heads, D], None): there are no weights to return.
    """
    rows, heads, length, size = query.shape
    if length > 1 or options.get("s_aux") is not None or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    groups = key.shape[1]
    folded = query.reshape(rows, groups, heads // groups, size)
    scaling = size**-0.5 if scaling is None else scaling
    if query.is_cuda:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            folded, key, value, attn_mask=attention_mask, scale=scaling
        )
    else:
        scores = (folded @ key.transpose(2, 3)).float() * scaling
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, -torch.inf)
        mixed = scores.softmax(-1).to(value.dtype) @ value
    return mixed.reshape(rows, 1, heads, value.shape[-1]), None


def use_decode_attention(model: PreTrainedModel) -> None:
    """Let a model use it where the library would use sdpa; any other model stays as it is."""
    if attention_of(model.config) == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
