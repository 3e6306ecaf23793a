"""Attention for decoding with grouped heads: the query heads of a group as the rows of one call.

With grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) several query heads share one key-value head. The
library repeats keys and values for each of them. With one new token a row, the heads of a group can stand where the
positions of a longer query would: the same sums, without the copies. On a CPU (SmolLM2-135M, 64 rows, 192 columns,
bfloat16) 1.3 ms a layer instead of 8.7.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_grouped"


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
        key, value: [B, groups, T, D].
        attention_mask: [B, 1, Q, T], true where to attend; None: everywhere.

    Returns:
        ([B, Q, heads, D], None): there are no weights to return.
    """
    rows, heads, length, size = query.shape
    if length > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    groups = key.shape[1]
    folded = query.view(rows, groups, heads // groups, size)
    mixed = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, scale=scaling
    )
    return mixed.reshape(rows, 1, heads, size), None


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model with grouped heads use it, if the library would use sdpa; any other model stays as it is."""
    config = model.config
    groups = getattr(config, "num_key_value_heads", None)
    if config._attn_implementation == "sdpa" and groups and groups < config.num_attention_heads:
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
