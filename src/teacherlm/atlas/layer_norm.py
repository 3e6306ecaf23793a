"""The LayerNorm of the reference's BERT, with which the released checkpoints and their indices were made.

    y = (x - mean(x)) / sqrt(mean(x^2) + eps) * weight + bias                   the reference's
    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias       the ordinary one

`"layer_norm": "mean_square"` in a checkpoint's config.json selects the reference's. The ordinary one is the default.
"""

from typing import Any

import torch
from torch import nn

from teacherlm.core.errors import UserError
from teacherlm.core.terminal import shown

KEY, MEAN_SQUARE = "layer_norm", "mean_square"


class MeanSquareNorm(nn.LayerNorm):
    """Subtracts the mean and divides by the root of the mean square, in float32 or a wider type."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        normed = (wide - wide.mean(dim=-1, keepdim=True)) * scale
        return (self.weight * normed.to(self.weight.dtype) + self.bias).to(x.dtype)


def use_mean_square(encoder: Any) -> None:
    """Replace every LayerNorm of an encoder, keep its weights, and record the change in the configuration."""
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
        UserError: the configuration asks for an unknown LayerNorm.
    """
    kind = getattr(encoder.config, KEY, None)
    if kind == MEAN_SQUARE:
        use_mean_square(encoder)
    elif kind is not None:
        raise UserError(
            f"{where}: its config.json asks for the {KEY} {shown(kind)}; {MEAN_SQUARE!r} or no {KEY} was expected"
        )
