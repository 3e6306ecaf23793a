"""The next token of each row, drawn with that row's own random numbers."""

import torch


def choose_tokens(
    logits_BV: torch.Tensor, generators: list[torch.Generator], temperature: float, top_p: float
) -> torch.Tensor:
    """The next token of each row: the likeliest at temperature 0, else a sample of the softmax.

    Samples by the Gumbel-max trick (Maddison et al. 2014, arXiv 1411.0030): argmax(logit / temperature - log(-log u)),
    u uniform, is a sample of softmax(logit / temperature). Every row draws from its own generator, so its tokens do not
    depend on the rows beside it. Inverting the cumulative distribution would need one draw a token only, but there a
    rounding error of the logits, which batches of another shape bring, moves every boundary between tokens after it.

    u is drawn and turned around by hand: torch's own exponential draws take five times as long on a CPU.

    Args:
        logits_BV: of the last position, any float type.
        generators: B of them, on the logits' device; not used at temperature 0.

    Returns:
        int64, [B].
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    scaled_BV = logits_BV.float() / temperature
    if top_p < 1:
        scaled_BV = keep_nucleus(scaled_BV, top_p)
    noise_BV = torch.empty_like(scaled_BV)
    for noise_V, generator in zip(noise_BV, generators):
        noise_V.uniform_(generator=generator)  # 0 is possible and never chosen, 1 is not possible
    return scaled_BV.sub_(noise_BV.log_().neg_().log_()).argmax(-1)


def keep_nucleus(logits_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Minus infinity for all but the smallest set of likeliest tokens that reaches top_p (Holtzman et al. 2020)."""
    sorted_BV, order_BV = logits_BV.softmax(-1).sort(dim=-1, descending=True)
    outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p
    return logits_BV.masked_fill(torch.zeros_like(outside_BV).scatter(1, order_BV, outside_BV), -torch.inf)
