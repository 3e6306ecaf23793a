"""The private interfaces of torch (2.13) that this project uses: oneDNN's matrix products on a CPU.

torch.compile uses these operators too. The public linear layer reorders its weights for the processor's kernels at
every call.
"""

import torch


def linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """states [..., in] @ weight [out, in].T + bias by oneDNN. The weight may be a result of `packed_weight`."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def packed_weight(weight: torch.Tensor) -> torch.Tensor:
    """The weight [out, in], reordered for the processor's kernels. Only `linear` can read it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def packs_bfloat16() -> bool:
    """Whether oneDNN has kernels for bfloat16 on this processor."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
