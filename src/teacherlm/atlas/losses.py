"""What reader and retriever learn from (Izacard et al. 2022, section 2.2; formulas as the reference computes them).

B questions, N passages of each, T target tokens, S encoder states, D dimensions of the retriever's vectors.

The retriever learns from the reader: which passages made the target likely (`ppmean`, `loop`), which it attended to
(`evalnormsum`), or with which the target is likely when they are drawn by their scores (`emdr`). What the reader says
is taken in evaluation mode and without gradient.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import kl_div, log_softmax, softmax

from teacherlm.atlas.reader import IGNORED, Encoded, Reader, Target, decode, encode, target_losses
from teacherlm.runtime.compat.of_transformers import attention_of, cross_values

MODES = {"ppmean": "ppmean", "pdist": "ppmean", "loop": "loop", "emdr": "emdr"}
MODES |= {"evalnormsum": "evalnormsum", "adist": "evalnormsum"}
"""--gold_score_mode -> what it is; pdist and adist are the paper's names."""
NORM_TOKENS = 256
"""A constant of the reference, by which its attention scores are divided: its temperatures are meant for these."""


def reader_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """The mean loss over all target tokens of the batch, all passages fused."""
    return target_losses(logits_BTV, labels_BT).sum() / (labels_BT != IGNORED).sum()


def retriever_scores(queries_BD: torch.Tensor, passages_BND: torch.Tensor) -> torch.Tensor:
    """query . passage / sqrt(D), (B, N)."""
    return torch.einsum("bd,bnd->bn", queries_BD.float(), passages_BND.float()) / math.sqrt(queries_BD.shape[-1])


def retriever_loss(
    mode: str,
    reader: Reader,
    texts_BN: Sequence[Sequence[str]],
    target: Target,
    scores_BN: torch.Tensor,
    temperature_score: float,
    temperature_gold: float,
) -> torch.Tensor:
    """The retriever's loss, in one of the MODES; only `scores_BN` has a gradient."""
    mode = MODES[mode]
    if mode == "emdr":
        with evaluating(reader):
            logprobs_BNT = passage_logprobs(reader, texts_BN, target, temperature_gold)
        return emdr2(scores_BN / temperature_score, logprobs_BNT, target.labels)
    gold = {"ppmean": likelihood_scores, "loop": left_out_scores, "evalnormsum": attention_scores}[mode]
    with evaluating(reader):
        gold_BN = gold(reader, texts_BN, target)
    return distillation(scores_BN / temperature_score, gold_BN / temperature_gold)


@contextlib.contextmanager
def evaluating(reader: Reader) -> Iterator[None]:
    """Without dropout and gradients; afterwards the reader trains on, if it did."""
    training = reader.model.training
    reader.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        reader.model.train(training)


def distillation(scores_BN: torch.Tensor, gold_BN: torch.Tensor) -> torch.Tensor:
    """KL(softmax(gold) || softmax(scores)), averaged over batch and passages: each element, as torch's `mean`."""
    each_BN = kl_div(log_softmax(scores_BN.float(), dim=-1), softmax(gold_BN.float(), dim=-1), reduction="none")
    return each_BN.mean()


def emdr2(scores_BN: torch.Tensor, logprobs_BNT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """EMDR2 (Sachan et al. 2021): minus the mean over target tokens of log sum_k p(passage k) p(token | passage k)."""
    logprior_BN1 = log_softmax(scores_BN.float(), dim=-1)[:, :, None]
    together_BT = torch.logsumexp(logprior_BN1 + logprobs_BNT, dim=1)
    there_BT = labels_BT != IGNORED
    return -(together_BT * there_BT).sum() / there_BT.sum()


def alone(reader: Reader, texts_BN: Sequence[Sequence[str]], target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits (B * N, T, V), labels (B * N, T)) of each passage by itself; every question has as many."""
    encoded = encode(reader, [[text] for texts in texts_BN for text in texts])
    each = Target(*(part.repeat_interleave(len(texts_BN[0]), dim=0) for part in target))
    return decode(reader, encoded, each).logits, each.labels


def likelihood_scores(reader: Reader, texts_BN: Sequence[Sequence[str]], target: Target) -> torch.Tensor:
    """Perplexity distillation (`ppmean`, the paper's PDist): minus the target's mean loss with each passage alone."""
    logits, labels = alone(reader, texts_BN, target)
    return -mean_loss(logits, labels).view(len(texts_BN), -1)


def left_out_scores(reader: Reader, texts_BN: Sequence[Sequence[str]], target: Target) -> torch.Tensor:
    """Leave-one-out (`loop`): the mean loss of the target with that passage left out of all."""
    encoded = encode(reader, texts_BN)
    scores = []
    for left_out in range(len(texts_BN[0])):
        others = encoded.passage.masked_fill(encoded.passage == left_out, -1)
        logits = decode(reader, Encoded(encoded.states, others), target).logits
        scores.append(mean_loss(logits, target.labels))
    return torch.stack(scores, dim=1)


def attention_scores(reader: Reader, texts_BN: Sequence[Sequence[str]], target: Target) -> torch.Tensor:
    """Attention distillation (`evalnormsum`, in the paper ADist): how much the decoder takes from each passage.

    The cross-attention weight of a state times the norm of its value, averaged over heads, summed over layers, target
    tokens and the passage's states, and divided by 256 * layers * target tokens.
    """
    encoded = encode(reader, texts_BN)
    decoder = reader.model.decoder
    fast = attention_of(decoder.config)
    decoder.set_attn_implementation("eager")  # the others keep their weights to themselves
    try:
        attentions = decode(reader, encoded, target, output_attentions=True).cross_attentions
    finally:
        decoder.set_attn_implementation(fast)
    there_B1T1 = (target.labels != IGNORED)[:, None, :, None]
    taken_BS = torch.zeros(encoded.passage.shape, device=target.labels.device)
    for values_BSHK, weights_BHTS in zip(cross_values(decoder, encoded.states), attentions, strict=True):
        norms_BH1S = values_BSHK.float().norm(dim=-1).transpose(1, 2)[:, :, None]
        taken_BS += (weights_BHTS.float() * norms_BH1S * there_B1T1).mean(dim=1).sum(dim=1)
    passages = torch.arange(len(texts_BN[0]), device=target.labels.device)
    of_passage_BNS = encoded.passage[:, None] == passages[None, :, None]
    tokens_B1 = (target.labels != IGNORED).sum(dim=1, keepdim=True)
    return (of_passage_BNS * taken_BS[:, None]).sum(dim=-1) / (NORM_TOKENS * len(attentions) * tokens_B1)


def passage_logprobs(
    reader: Reader, texts_BN: Sequence[Sequence[str]], target: Target, temperature: float
) -> torch.Tensor:
    """log p(token | passage) of the target's tokens with each passage alone, (B, N, T); 0 where there is no token."""
    logits, labels = alone(reader, texts_BN, target)
    return -target_losses(logits.float() / temperature, labels).view(len(texts_BN), -1, labels.shape[1])


def mean_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """(B) of each target."""
    return target_losses(logits_BTV, labels_BT).sum(dim=1) / (labels_BT != IGNORED).sum(dim=1)
