"""The losses of reader and retriever (Izacard et al. 2022, section 2.2), with the reference's formulas.

Shapes: B questions, N passages per question, T target tokens, S encoder states, D dimensions of retrieval vectors.

The retriever learns from the reader. Its training signal is which passages made the target likely (`ppmean`, `loop`),
which passages the reader attended to (`evalnormsum`), or how likely the target is if passages are drawn by their scores
(`emdr`). The reader computes this in evaluation mode and without gradients.
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
"""Maps each value of --gold_score_mode to the mode. pdist and adist are the paper's names."""
NORM_TOKENS = 256
"""A constant by which the reference divides its attention scores. Its temperatures are chosen for these scores."""


def reader_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """The mean loss over all target tokens of the batch, with all passages fused."""
    return target_losses(logits_BTV, labels_BT).sum() / (labels_BT != IGNORED).sum()


def retriever_scores(queries_BD: torch.Tensor, passages_BND: torch.Tensor) -> torch.Tensor:
    """The scores query . passage / sqrt(D), (B, N)."""
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
    """The retriever's loss in one of the MODES. Only `scores_BN` has a gradient."""
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
    """Within the block, the reader computes without dropout and gradients. Afterwards its mode is restored."""
    training = reader.model.training
    reader.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        reader.model.train(training)


def distillation(scores_BN: torch.Tensor, gold_BN: torch.Tensor) -> torch.Tensor:
    """KL(softmax(gold) || softmax(scores)), averaged over all elements (batch and passages), like torch's `mean`."""
    each_BN = kl_div(log_softmax(scores_BN.float(), dim=-1), softmax(gold_BN.float(), dim=-1), reduction="none")
    return each_BN.mean()


def emdr2(scores_BN: torch.Tensor, logprobs_BNT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """EMDR2 (Sachan et al. 2021): the negative mean over tokens of log sum_k p(passage k) p(token | passage k)."""
    logprior_BN1 = log_softmax(scores_BN.float(), dim=-1)[:, :, None]
    together_BT = torch.logsumexp(logprior_BN1 + logprobs_BNT, dim=1)
    there_BT = labels_BT != IGNORED
    return -(together_BT * there_BT).sum() / there_BT.sum()


def alone(reader: Reader, texts_BN: Sequence[Sequence[str]], target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits (B * N, T, V), labels (B * N, T)) with each passage alone. All questions have the same number of them."""
    encoded = encode(reader, [[text] for texts in texts_BN for text in texts])
    each = Target(*(part.repeat_interleave(len(texts_BN[0]), dim=0) for part in target))
    return decode(reader, encoded, each).logits, each.labels


def likelihood_scores(reader: Reader, texts_BN: Sequence[Sequence[str]], target: Target) -> torch.Tensor:
    """Perplexity distillation (`ppmean`, the paper's PDist): the negative mean loss of the target with each passage
    alone."""
    logits, labels = alone(reader, texts_BN, target)
    return -mean_loss(logits, labels).view(len(texts_BN), -1)


def left_out_scores(reader: Reader, texts_BN: Sequence[Sequence[str]], target: Target) -> torch.Tensor:
    """Leave-one-out (`loop`): the mean loss of the target with all passages except one."""
    encoded = encode(reader, texts_BN)
    scores = []
    for left_out in range(len(texts_BN[0])):
        others = encoded.passage.masked_fill(encoded.passage == left_out, -1)
        logits = decode(reader, Encoded(encoded.states, others), target).logits
        scores.append(mean_loss(logits, target.labels))
    return torch.stack(scores, dim=1)


def attention_scores(reader: Reader, texts_BN: Sequence[Sequence[str]], target: Target) -> torch.Tensor:
    """Attention distillation (`evalnormsum`, the paper's ADist): how much the decoder attends to each passage.

    The score is the cross-attention weight of a state times the norm of its value. It is averaged over heads, summed
    over layers, target tokens and the passage's states, and divided by 256 * layers * target tokens.
    """
    encoded = encode(reader, texts_BN)
    decoder = reader.model.decoder
    fast = attention_of(decoder.config)
    decoder.set_attn_implementation("eager")  # other implementations do not return weights
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
    """log p(token | passage) of the target's tokens with each passage alone, (B, N, T); 0 if there is no token."""
    logits, labels = alone(reader, texts_BN, target)
    return -target_losses(logits.float() / temperature, labels).view(len(texts_BN), -1, labels.shape[1])


def mean_loss(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """The mean loss of each target, (B)."""
    return target_losses(logits_BTV, labels_BT).sum(dim=1) / (labels_BT != IGNORED).sum(dim=1)
