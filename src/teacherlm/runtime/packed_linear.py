"""Linear layers on a CPU with weights in oneDNN's order.

torch's linear layer reorders its weights for the processor's kernels at every call. That takes a quarter of its time at
64 rows and half of its time at 8 rows. torch.compile packs weights with the same operators, but it needs a minute to
compile, and compiles again for other shapes.
"""

import os

import torch

from teacherlm.runtime.compat.of_torch import linear, packed_weight, packs_bfloat16

KERNELS = 16
"""Number of compiled kernels that oneDNN keeps. It compiles one per shape and by default keeps 1024 with their buffers.
When batches differ in length, that is about 10 MiB per batch (for BLOOM-560m)."""


class PackedLinear(torch.nn.Module):
    """A linear layer for inference whose weights are packed once."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.dtype = linear.weight.dtype
        self.bias = linear.bias
        self.pack(linear.weight.detach())

    def pack(self, weight: torch.Tensor) -> None:
        """Pack a weight [out, in] and use it from now on."""
        self.weight = packed_weight(weight.to(self.dtype).contiguous())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return linear(states, self.weight, self.bias)


def pack_linears(model: torch.nn.Module) -> None:
    """Replace the linear layers of a model on a CPU if oneDNN has kernels for their data type."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # oneDNN reads it at its first operation
    dtypes = [torch.float32] if torch.backends.mkldnn.is_available() else []
    if dtypes and packs_bfloat16():
        dtypes.append(torch.bfloat16)
    linears = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is torch.nn.Linear and child.weight.dtype in dtypes
    ]
    for module, name in linears:  # one by one, so that each original weight is freed before the next is packed
        setattr(module, name, PackedLinear(getattr(module, name)))
