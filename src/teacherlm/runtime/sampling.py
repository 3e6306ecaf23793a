"""Choose the next token of each row with a separate random generator per row."""

import torch
from transformers import LogitsProcessor

BLOCK = {"cpu": 2**19, "cuda": 2**26}
"""Maximum number of logits that are processed together. On a CPU they should fit into its cache."""


def choose_tokens(
    logits_BV: torch.Tensor, generators: list[torch.Generator], temperature: float, top_p: float
) -> torch.Tensor:
    """The next token of each row: the most likely token at temperature 0, otherwise a sample of the softmax.

    It samples by the Gumbel-max trick (Maddison et al. 2014, arXiv 1411.0030): argmax(logit / temperature -
    log(-log u)) with uniform u is a sample of softmax(logit / temperature). Each row has a separate generator, so its
    tokens do not depend on the other rows. Inverting the cumulative distribution would need only one random number per
    token. But batches of different shapes give logits with different rounding errors, and there one rounding error
    moves the boundaries of all tokens after it.

    Args:
        logits_BV: logits of the last position, of any float type.
        generators: B generators on the device of the logits; not used at temperature 0.

    Returns:
        The tokens, int64 [B].
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


class Chooser(LogitsProcessor):
    """Makes the library's generation choose the tokens that `choose_tokens` draws, in place of its own."""

    def __init__(self, generators: list[torch.Generator], temperature: float = 1, top_p: float = 1):
        self.generators, self.temperature, self.top_p = generators, temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen_B = choose_tokens(scores.clone(), self.generators, self.temperature, self.top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen_B[:, None], 0.0)


def top_tokens(logits_BV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most likely tokens of each row, and their log-probabilities followed by that of all others together.

    Returns:
        int64 [B, k] and float32 [B, k + 1], on the CPU. k is at most V - 1.
    """
    k = min(k, logits_BV.shape[1] - 1)
    logprobs_BV = logits_BV.float().log_softmax(-1)
    found_BK, ids_BK = logprobs_BV.topk(k, sorted=True)
    others_B1 = logprobs_BV.scatter(1, ids_BK, -torch.inf).logsumexp(-1, keepdim=True)
    return ids_BK.cpu(), torch.cat([found_BK, others_B1], 1).clamp(max=0).cpu()


def draw_uniform(generators: list[torch.Generator], like_BV: torch.Tensor) -> torch.Tensor:
    """Uniform random numbers in [0, 1), multiples of 2**-24, with one row per generator.

    One 64-bit random number gives two of them. On a CPU this takes half the time of torch's uniform numbers and a fifth
    of the time of its exponential numbers.
    """
    rows, count = like_BV.shape
    bits = torch.empty(rows, (count + 1) // 2, dtype=torch.int64, device=like_BV.device)
    for row, generator in zip(bits, generators):
        row.random_(generator=generator)
    return bits.view(torch.int32)[:, :count].bitwise_and(0xFFFFFF).float().mul_(2**-24)


def keep_nucleus(logits_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """The logits with minus infinity for all tokens outside the nucleus (Holtzman et al. 2020).

    The nucleus is the smallest set of most likely tokens whose probabilities sum to at least top_p.
    """
    sorted_BV, order_BV = logits_BV.softmax(-1).sort(dim=-1, descending=True)
    outside_BV = sorted_BV.cumsum(-1) - sorted_BV >= top_p
    return logits_BV.masked_fill(torch.zeros_like(outside_BV).scatter(1, order_BV, outside_BV), -torch.inf)
