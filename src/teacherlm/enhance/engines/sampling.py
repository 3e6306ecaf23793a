"""The next token of each row, drawn with that row's own random numbers."""

import torch

BLOCK = {"cpu": 2**19, "cuda": 2**26}
"""Logits that are worked on together: on a CPU so many that they stay in its cache."""


def choose_tokens(
    logits_BV: torch.Tensor, generators: list[torch.Generator], temperature: float, top_p: float
) -> torch.Tensor:
    """The next token of each row: the likeliest at temperature 0, else a sample of the softmax.

    Samples by the Gumbel-max trick (Maddison et al. 2014, arXiv 1411.0030): argmax(logit / temperature - log(-log u)),
    u uniform, is a sample of softmax(logit / temperature). Every row draws from its own generator, so its tokens do not
    depend on the rows beside it. Inverting the cumulative distribution would need one draw a token only, but there a
    rounding error of the logits, which batches of another shape bring, moves every boundary between tokens after it.

    Args:
        logits_BV: of the last position, any float type.
        generators: B of them, on the logits' device; not used at temperature 0.

    Returns:
        int64, [B].
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    rows = max(1, BLOCK[logits_BV.device.type] // logits_BV.shape[1])
    chosen = []
    for first in range(0, len(generators), rows):
        scaled_BV = logits_BV[first : first + rows].float() / temperature
        if top_p < 1:
            scaled_BV = keep_nucleus(scaled_BV, top_p)
        uniform_BV = draw_uniform(generators[first : first + rows], scaled_BV)
        chosen.append(scaled_BV.sub_(uniform_BV.log_().neg_().log_()).argmax(-1))
    return torch.cat(chosen)


def draw_uniform(generators: list[torch.Generator], like_BV: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1), multiples of 2**-24, a row from each generator.

    Two of them are made of one 64-bit draw: half the time of torch's own on a CPU, a fifth of its exponential draws'.
    """
    rows, count = like_BV.shape
    bits = torch.empty(rows, (count + 1) // 2, dtype=torch.int64, device=like_BV.device)
    for row, generator in zip(bits, generators):
        row.random_(generator=generator)
    return bits.view(torch.int32)[:, :count].bitwise_and(0xFFFFFF).float().mul_(2**-24)


def keep_nucleus(logits_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Minus infinity for all but the smallest set of likeliest tokens that reaches top_p (Holtzman et al. 2020)."""
    sorted_BV, order_BV = logits_BV.softmax(-1).sort(dim=-1, descending=True)
    outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p
    return logits_BV.masked_fill(torch.zeros_like(outside_BV).scatter(1, order_BV, outside_BV), -torch.inf)
