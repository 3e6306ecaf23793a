"""The LayerNorm of the reference's BERT, which released checkpoints and their indices come from.

    y = (x - mean(x)) / sqrt(mean(x^2) + eps) * weight + bias        reference
    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias        the ordinary one

A checkpoint's config.json says which one its weights need: `"layer_norm": "mean_square"`, or nothing.
"""

from typing import Any

import torch
from torch import nn

from teacherlm.core.errors import UserError
from teacherlm.core.terminal import shown

KEY, MEAN_SQUARE = "layer_norm", "mean_square"


class MeanSquareNorm(nn.LayerNorm):
    """Subtracts the mean and divides by the root of the mean of squares, in float32 at least."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        normed = (wide - wide.mean(dim=-1, keepdim=True)) * scale
        return (self.weight * normed.to(self.weight.dtype) + self.bias).to(x.dtype)


def use_mean_square(encoder: Any) -> None:
    """Replace every LayerNorm of an encoder, with its weights, and note it in the configuration."""
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.LayerNorm:
                norm = MeanSquareNorm(child.normalized_shape, eps=child.eps)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    setattr(encoder.config, KEY, MEAN_SQUARE)


def use_described_norm(encoder: Any, where: Any) -> None:
    """Give an encoder the LayerNorm that its configuration asks for.

    Raises:
        UserError: the configuration asks for one that is not known.
    """
    kind = getattr(encoder.config, KEY, None)
    if kind == MEAN_SQUARE:
        use_mean_square(encoder)
    elif kind is not None:
        raise UserError(f"{where}: its config.json asks for the {KEY} {shown(kind)}; {MEAN_SQUARE!r} is known, or none")
