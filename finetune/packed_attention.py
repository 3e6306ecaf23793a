"""Attention for samples that stand one after the other in a row, each blind to the others.

So no token is padding: linear layers, norms and the loss see real ones only. In attention, where tokens meet, a CPU
takes one sample after the other; a GPU all of them below each other, padded at the right for that moment, where causal
attention keeps real tokens from seeing the padding. So the isolation is exact for rotary models, OPT and BLOOM, under
eager and sdpa attention; flash attention (the package flash-attn) gets the samples' borders. The samples of a step are
those that would be padded together.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from adapters import base_model
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor, dropout_add

KINDS = {"sdpa": "packed_sdpa", "eager": "packed_eager"}
ALIGNED = 8
"""Fused kernels take head sizes that are multiples of this."""


class Layout:
    """Where the tokens of samples in a row stand when the samples are below each other: sample b begins at b * longest.

    Args:
        lengths: of the samples.
        device: of the tokens.
    """

    def __init__(self, lengths: list[int], device: torch.device):
        self.samples, self.longest, self.tokens = len(lengths), max(lengths), sum(lengths)
        self.full = self.tokens == self.samples * self.longest
        self.places_N = torch.cat(
            [torch.arange(length, device=device) + number * self.longest for number, length in enumerate(lengths)]
        )

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """[1, heads, N, D] -> [samples, heads, longest, D], zeros at the right of shorter samples."""
        rows = states[0].transpose(0, 1)
        if not self.full:
            rows = rows.new_zeros(self.samples * self.longest, *rows.shape[1:]).index_copy(0, self.places_N, rows)
        return rows.reshape(self.samples, self.longest, *rows.shape[1:]).transpose(1, 2)

    def pack(self, states: torch.Tensor) -> torch.Tensor:
        """[samples, heads, longest, D] -> [1, N, heads, D]."""
        rows = states.transpose(1, 2).flatten(0, 1)
        return (rows if self.full else rows.index_select(0, self.places_N))[None]


class Packing:
    """How the batch lies that a model computes, and how its attention is; its attention layers share this object.

    It is not an argument of theirs, because not every model hands arguments through to them, and it stays until the
    next batch, because gradient checkpointing computes layers again in the backward pass.

    Args:
        causal: attention over [B, heads, T, D].
    """

    positions_N: torch.Tensor
    layouts: list[Layout]

    def __init__(self, causal: Callable[..., torch.Tensor]):
        self.causal = causal

    def begin(self, lengths: list[int], positions_N: torch.Tensor) -> None:
        """Take a batch. A GPU computes all samples at once, padded; a CPU one after the other, without padding."""
        device = positions_N.device
        groups = [lengths] if positions_N.is_cuda else [[length] for length in lengths]
        self.layouts = [Layout(group, device) for group in groups]
        self.positions_N = positions_N

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *how: Any) -> torch.Tensor:
        """Attention within each sample: [1, heads, N, D] -> [1, N, heads, D]."""
        sizes = [layout.tokens for layout in self.layouts]
        parts = zip(self.layouts, *(states.split(sizes, dim=2) for states in (query, key, value)))
        mixed = [layout.pack(self.causal(*map(layout.unpack, states), *how)) for layout, *states in parts]
        return torch.cat(mixed, dim=1)


def use_packing(model: PreTrainedModel, attention: str = "sdpa") -> bool:
    """Let a model take the batches of PackingCollator, and from now on only these.

    Args:
        attention: "sdpa", "eager" or one of transformers' flash attentions.

    Returns:
        Whether it could: not with a model whose attention the library does not let be replaced.

    Raises:
        ValueError, ImportError: a model or machine that this attention is not made for.
    """
    inner = base_model(model)
    packing = Packing(causal_eager if attention == "eager" else causal_sdpa)
    bloom = model.config.model_type == "bloom"
    flash = attention not in KINDS
    if not bloom and not getattr(inner, "_supports_attention_backend", False):
        return False
    if not bloom:
        inner.set_attn_implementation(KINDS.get(attention, attention))
    elif flash:
        raise ValueError(f"BLOOM has no {attention}; with sdpa its attention is a fused kernel too")
    else:
        inner.config._attn_implementation = KINDS[attention]  # the library believes that BLOOM can eager only
    for module in model.modules():
        module.packing = packing
        if isinstance(module, BloomAttention):
            module.forward = types.MethodType(bloom_forward, module)

    def begin(_: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        lengths_B = kwargs.pop("lengths")
        positions_1N = kwargs.pop("position_ids") if bloom else kwargs["position_ids"]
        packing.begin(lengths_B.tolist(), positions_1N[0])
        if flash:
            ends = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0)).int()
            kwargs |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
            longest = int(lengths_B.max())
            kwargs |= {"max_length_q": longest, "max_length_k": longest}
        return args, kwargs

    model.register_forward_pre_hook(begin, with_kwargs=True)
    return True


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each sample.

    Args:
        query: [1, heads, N, D].
        key, value: [1, groups, N, D].

    Returns:
        ([1, N, heads, D], None): there are no weights to return.
    """
    return module.packing.attend(query, key, value, dropout, scaling), None


def causal_sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """[B, heads, T, D] of queries, as many or fewer heads of keys and values: torch's fused kernels."""
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def causal_eager(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """The same in plain products."""
    key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    visible_TT = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scaling is None else scaling)
    weights = scores.float().masked_fill(~visible_TT, -torch.inf).softmax(-1).to(value.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ value


def bloom_forward(
    self: BloomAttention, hidden_states: torch.Tensor, residual: torch.Tensor, *args: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """BLOOM's attention within each sample, in fused kernels, which the library has not for BLOOM.

    ALiBi (Press et al. 2022, arXiv 2108.12409), in BLOOM's form, adds slope x key position to a head's scores. That is
    one dimension more of queries and keys: 1 / scaling in the one, the bias in the other. So no score is kept for it.
    """
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    _, heads, _, size = query.shape
    positions_N = self.packing.positions_N
    ones_1T = torch.ones(1, int(positions_N.max()) + 1, dtype=torch.long, device=query.device)
    bias_HN = build_alibi_tensor(ones_1T, heads, query.dtype)[:, 0, positions_N]
    bias = bias_HN[None, :, :, None]
    query = torch.cat([query, torch.full_like(bias, 1 / self.inv_norm_factor)], dim=-1)
    key = torch.cat([key, bias], dim=-1)
    query, key, value = (
        torch.nn.functional.pad(states, (0, size + ALIGNED - states.shape[-1])) for states in (query, key, value)
    )
    dropout = self.attention_dropout.p if self.training else 0.0
    mixed = self.packing.attend(query, key, value, dropout, self.inv_norm_factor)[..., :size]
    return dropout_add(self.dense(mixed.flatten(2)), residual, self.hidden_dropout, self.training), None


def no_mask(*args: Any, **options: Any) -> None:
    """The mask that the library shall make for `attend`."""


for name in KINDS.values():
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, no_mask)
