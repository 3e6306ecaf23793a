"""Linear layers on a CPU whose weights lie as oneDNN wants them.

torch's linear layer brings its weights into the order of the processor's kernels anew at every call, which takes a
quarter of its time at 64 rows and half of it at 8. torch.compile packs with these operators too, but would compile for
a minute, and again for other shapes.
"""

import torch


class PackedLinear(torch.nn.Module):
    """A linear layer for inference, with the weights packed once."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")


def pack_linears(model: torch.nn.Module) -> None:
    """Replace the linear layers of a model on a CPU, where oneDNN has kernels for their type."""
    dtypes = [torch.float32] if torch.backends.mkldnn.is_available() else []
    if dtypes and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.append(torch.bfloat16)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear and child.weight.dtype in dtypes:
                setattr(module, name, PackedLinear(child))
