"""Attention for samples that are concatenated in one row; no sample sees another.

A row has no padding, so linear layers, norms and the loss process real tokens only. Attention needs the samples
separated. A CPU computes the samples of one length together, without padding. A GPU computes all samples as one batch,
padded on the right within the attention; causal attention keeps real tokens from seeing the padding. The isolation is
exact for rotary models, OPT and BLOOM, with eager and sdpa attention. Flash attention (the package flash-attn) gets the
borders of the samples.

Without gradients, samples can share prefixes. A first row with the prefixes is computed with `record=True`. The samples
of the next row begin where their prefix ends, and the argument `prefixes` says which prefix each sample sees.
"""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from teacherlm.core.errors import UserError
from teacherlm.runtime.compat.of_transformers import (
    BloomAttention,
    attention_of,
    replace_bloom_attention,
    restore_bloom_attention,
    set_attention_name,
)
from teacherlm.runtime.loading import base_model
from teacherlm.runtime.model_config import attention_windows

KINDS = {"sdpa": "packed_sdpa", "eager": "packed_eager"}
ALIGNED = 8
"""Fused kernels need head sizes that are multiples of this number."""
HARMLESS = {
    "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "layer_idx", "logits_to_keep", "max_length_k", "max_length_q",
    "num_items_in_batch", "output_attentions", "output_hidden_states", "output_router_logits", "past_key_values",
    "position_embeddings", "position_ids", "return_dict", "use_cache",
}  # fmt: skip
"""Arguments that models pass to their attention function and that change nothing within a sample."""


class NotPackable(UserError):
    """A model's attention includes something that `Packing.attend` does not compute."""


class Layout:
    """Indices of the packed tokens in the padded batch, flattened: sample b begins at b * longest.

    Args:
        lengths: the lengths of the samples.
        device: the device of the tokens.
    """

    def __init__(self, lengths: list[int], device: torch.device):
        self.samples, self.longest, self.tokens = len(lengths), max(lengths), sum(lengths)
        self.full = self.tokens == self.samples * self.longest
        self.places_N = torch.cat(
            [torch.arange(length, device=device) + number * self.longest for number, length in enumerate(lengths)]
        )

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """[1, heads, N, D] -> [samples, heads, longest, D], with zeros at the right of shorter samples."""
        rows = states[0].transpose(0, 1)
        if not self.full:
            rows = rows.new_zeros(self.samples * self.longest, *rows.shape[1:]).index_copy(0, self.places_N, rows)
        return rows.reshape(self.samples, self.longest, *rows.shape[1:]).transpose(1, 2)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """[samples, heads, longest, D] -> [1, N, heads, D]."""
        rows = states.transpose(1, 2).flatten(0, 1)
        return (rows if self.full else rows.index_select(0, self.places_N))[None]


class Packing:
    """The layout of the current batch and its attention function. All attention layers of a model share this object.

    It is not passed to the layers as an argument, because not every model passes arguments on to them. It stays until
    the next batch, because gradient checkpointing computes layers again in the backward pass.

    Args:
        causal: the function that computes causal attention over [B, heads, T, D].
    """

    positions_N: torch.Tensor
    layouts: list[Layout]
    prefixes: list[slice | None]
    """For each layout, the position of the samples' shared prefix in the recorded row; None without a prefix."""
    recording = False
    attention_before: str
    """The name of the library's attention that the model had before."""

    def __init__(self, causal: Callable[..., torch.Tensor]):
        self.causal = causal
        self.recorded: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, lengths: list[int], positions_N: torch.Tensor, prefixes: list[slice | None] | None) -> None:
        """Set the layout of a batch.

        A GPU computes all samples of a prefix at once, padded. A CPU computes those of one length at once, unpadded.
        """
        device = positions_N.device
        pairs = zip(lengths, prefixes or [None] * len(lengths))
        one_length = not takes_padding(device)
        runs = [list(run) for _, run in groupby(pairs, lambda pair: (pair[1], pair[0] if one_length else None))]
        self.layouts = [Layout([length for length, _ in run], device) for run in runs]
        self.prefixes = [run[0][1] for run in runs]
        before = (prefix.stop - prefix.start if prefix is not None else 0 for prefix in self.prefixes)
        self.longest = max(layout.longest + length for layout, length in zip(self.layouts, before))
        self.positions_N = positions_N

    def attend(
        self, layer: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *how: Any
    ) -> torch.Tensor:
        """Compute attention within each sample and its prefix: [1, heads, N, D] -> [1, N, heads, D]."""
        if self.recording:
            self.recorded[layer] = (key, value)
        sizes = [layout.tokens for layout in self.layouts]
        mixed = []
        for layout, prefix, *states in zip(
            self.layouts, self.prefixes, *(states.split(sizes, dim=2) for states in (query, key, value))
        ):
            query, key, value = map(layout.unpack, states)
            if prefix is not None:
                before = [part[:, :, prefix].expand(layout.samples, -1, -1, -1) for part in self.recorded[layer]]
                key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
            mixed.append(layout.pack(self.causal(query, key, value, *how)))
        return torch.cat(mixed, dim=1)


def takes_padding(device: torch.device) -> bool:
    """Whether samples of several lengths are computed together: a GPU has idle units for the padding."""
    return device.type == "cuda"


def use_packing(model: PreTrainedModel, attention: str = "sdpa", longest: int | None = None) -> bool:
    """Let a model compute packed rows of samples. From then on it computes only such rows.

    Its forward takes `input_ids` and `position_ids` [1, N] and the samples' `lengths` [B].

    Args:
        attention: "sdpa", "eager" or one of transformers' flash attentions.
        longest: maximum number of tokens in a sample; None means unknown.

    Returns:
        Whether the model can be packed. It cannot if the library does not allow its attention to be replaced, if its
        attention is not a softmax over all earlier tokens, or if its window is shorter than the longest sample. This
        function only reads the model's settings; self_check.py compares what the model computes.

    Raises:
        ValueError, ImportError: the model or the machine does not support this attention.
    """
    inner = base_model(model)
    packing = Packing(causal_eager if attention == "eager" else causal_sdpa)
    bloom = model.config.model_type == "bloom"
    flash = attention not in KINDS
    if not bloom and (not inner.is_backend_compatible() or has_other_attention(inner.config, longest)):
        return False
    packing.attention_before = attention_of(inner.config)
    if not bloom:
        inner.set_attn_implementation(KINDS.get(attention, attention))
    elif flash:
        raise ValueError(f"BLOOM has no {attention}; with sdpa its attention is a fused kernel too")
    else:
        set_attention_name(inner.config, KINDS[attention])
        replace_bloom_attention(model, PackedBloomAttention)
    for module in model.modules():
        module.packing = packing

    def begin(_: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        lengths_B = kwargs.pop("lengths")
        positions_1N = kwargs.pop("position_ids") if bloom else kwargs["position_ids"]
        packing.recording = kwargs.pop("record", False)
        packing.begin(lengths_B.tolist(), positions_1N[0], kwargs.pop("prefixes", None))
        if flash:
            ends = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0)).int()
            kwargs |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            longest = int(lengths_B.max())
            kwargs |= {"max_length_q": longest, "max_length_k": longest}
        return args, kwargs

    packing.hook = model.register_forward_pre_hook(begin, with_kwargs=True)
    return True


def stop_packing(model: PreTrainedModel) -> None:
    """Restore a model's original attention, for padded batches and generation."""
    packing = model.packing
    packing.hook.remove()
    for module in model.modules():
        del module.packing
    inner = base_model(model)
    if model.config.model_type == "bloom":
        restore_bloom_attention(model)
        set_attention_name(inner.config, packing.attention_before)
    else:
        inner.set_attn_implementation(packing.attention_before)


def has_other_attention(config: PreTrainedConfig, longest: int | None) -> bool:
    """Whether a model's attention needs something that `attend` does not compute.

    That is a window shorter than the longest sample, capped scores, or layers of an unknown kind.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    bounded = any(longest is None or window < longest for window in attention_windows(config))
    capped = getattr(text, "attn_logit_softcapping", None)
    return bool(kinds - {"full_attention", "sliding_attention"} or bounded or capped)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within each sample.

    Args:
        query: [1, heads, N, D].
        key, value: [1, groups, N, D].

    Returns:
        ([1, N, heads, D], None); the second value stands for the attention weights, which are not kept.

    Raises:
        NotPackable: the model needs more than causal attention, such as capped scores, biases or sinks, or a sample is
            longer than the window.
    """
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in HARMLESS)
    unknown += ["its own mask"] * (attention_mask is not None) + ["attention to later tokens"] * (is_causal is False)
    if sliding_window is not None and sliding_window < module.packing.longest:
        unknown.append(f"a window of {sliding_window} tokens")
    if unknown:
        raise NotPackable(f"the model's attention has {', '.join(unknown)}, which packed batches do not compute")
    return module.packing.attend(module, query, key, value, dropout, scaling), None


def causal_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Causal attention in torch's fused kernels; queries are [B, heads, T, D], keys and values may have fewer heads.

    If there are more keys than queries, the additional keys come first. With gradients, a CPU computes in float32,
    because torch's kernel for 16-bit gradients takes 2.5 times as long at the lengths of CREAK's samples.
    """
    if query.device.type == "cpu" and query.requires_grad and value.dtype.itemsize < 4:
        with torch.autocast("cpu", enabled=False):
            return causal_sdpa(query.float(), key.float(), value.float(), dropout, scaling).to(value.dtype)
    alike = query.shape[2] == key.shape[2]
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if alike else visible(query, key),
        dropout_p=dropout,
        is_causal=alike,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def causal_eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """The attention of `causal_sdpa`, computed with plain matrix products."""
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    weights = scores.float().masked_fill(~visible(query, key), -torch.inf).softmax(-1).to(value.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ value


def visible(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """A mask [T, S] of the keys that each query sees: its own and all earlier ones."""
    queries, keys = query.shape[2], key.shape[2]
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)


class PackedBloomAttention(BloomAttention):
    """BLOOM's attention within each sample in fused kernels, which transformers does not support for BLOOM.

    BLOOM's form of ALiBi (Press et al. 2022, arXiv 2108.12409) adds slope x key position to the scores of a head. One
    more dimension of queries (1 / scaling) and keys (the bias) has the same effect. So the scores need not be stored.
    """

    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        query, key, value = self.heads(hidden_states)
        size = query.shape[3]
        bias = self.bias(self.packing.positions_N, query.dtype)[None, :, :, None]
        query = torch.cat([query, torch.full_like(bias, 1 / self.scale)], dim=-1)
        key = torch.cat([key, bias], dim=-1)
        query, key, value = (
            torch.nn.functional.pad(states, (0, size + ALIGNED - states.shape[-1])) for states in (query, key, value)
        )
        mixed = self.packing.attend(self, query, key, value, self.dropped, self.scale)[..., :size]
        return self.finish(mixed.flatten(2), residual), None


def no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask function for `attend`: it makes no mask."""


for name in KINDS.values():
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, no_mask)
