"""What this project uses of torch (2.13) without a public interface for it: oneDNN's products on a CPU.

torch.compile computes with these operators too. The public linear layer brings its weights into the order of the
processor's kernels anew at every call.
"""

import torch


def linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """states [..., in] @ weight [out, in].T + bias by oneDNN; the weight may be one of `packed_weight`."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def packed_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight [out, in] in the order of the processor's kernels; only `linear` can read it."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def packs_bfloat16() -> bool:
    """Whether oneDNN has kernels for bfloat16 on this processor."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
