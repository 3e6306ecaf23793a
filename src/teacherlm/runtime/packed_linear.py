"""Linear layers on a CPU whose weights lie as oneDNN wants them.

torch's linear layer brings its weights into the order of the processor's kernels anew at every call, which takes a
quarter of its time at 64 rows and half of it at 8. torch.compile packs with these operators too, but would compile for
a minute, and again for other shapes.
"""

import os

import torch

from teacherlm.runtime.compat.of_torch import linear, packed_weight, packs_bfloat16

KERNELS = 16
"""Compiled kernels that oneDNN keeps. It compiles one for each shape and keeps 1024, with their buffers: of batches
that are all of other lengths, some 10 MiB each (BLOOM-560m's)."""


class PackedLinear(torch.nn.Module):
    """A linear layer for inference, with the weights packed once."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.dtype = linear.weight.dtype
        self.bias = linear.bias
        self.pack(linear.weight.detach())

    def pack(self, weight: torch.Tensor) -> None:
        """Take a weight [out, in], from now on instead of the one before."""
        self.weight = packed_weight(weight.to(self.dtype).contiguous())

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return linear(states, self.weight, self.bias)


def pack_linears(model: torch.nn.Module) -> None:
    """Replace the linear layers of a model on a CPU, where oneDNN has kernels for their type."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read at its first operation
    dtypes = [torch.float32] if torch.backends.mkldnn.is_available() else []
    if dtypes and packs_bfloat16():
        dtypes.append(torch.bfloat16)
    linears = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is torch.nn.Linear and child.weight.dtype in dtypes
    ]
    for module, name in linears:  # one after the other, so that each one's own weights go before the next are packed
        setattr(module, name, PackedLinear(getattr(module, name)))
