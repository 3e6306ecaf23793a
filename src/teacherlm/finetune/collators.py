"""Make batches from samples: packed one after the other in a row, or padded to one length."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate, chain
from typing import Any

import torch

from teacherlm.catalog.text_parts import QUESTION
from teacherlm.finetune.loss_parts import Shares
from teacherlm.finetune.soft_targets import BLOCKS, TeacherTokens
from teacherlm.finetune.token_batches import packed_cost, padded_cost

NO_LOSS = -100


def next_tokens(sample: Mapping[str, Any]) -> list[int]:
    """The label of each position: the next token, or NO_LOSS.

    Args:
        sample: a mapping with `input_ids`, and `skipped`, the number of tokens on the left that have no loss.
    """
    ids = sample["input_ids"]
    first = max(1, sample["skipped"])  # nothing predicts the first token
    return [NO_LOSS] * min(first - 1, len(ids)) + ids[first:] + [NO_LOSS] * (len(ids) >= first)


def labelled(samples: list[Mapping[str, Any]], shares: Shares | None) -> tuple[list[list[int]], list[list[int]] | None]:
    """The labels of each sample, and the part (loss_parts.py) that each label belongs to, if parts have weights.

    Args:
        shares: the weight of each part. A part with the weight 0 has no labels.
    """
    labels = list(map(next_tokens, samples))
    if shares is None:
        return labels, None
    parts = [[*sample["parts"][1:], QUESTION] for sample in samples]
    kept = [
        [label if shares[part] else NO_LOSS for label, part in zip(*pair)] for pair in zip(labels, parts, strict=True)
    ]
    return kept, parts


def token_weights(labels: list[list[int]], average: str, parts: list[list[int]] | None = None) -> list[list[float]]:
    """The weight of each position of each sample in the mean of a step. If there are parts, each has a mean.

    Args:
        average: what has the same weight: "token" for all tokens with a label; "sample" for all samples; "batch" for
            all batches, and within a batch for all its tokens, which is the reference's mean (He et al. 2023,
            finetune.py).
    """
    parts = parts or [[QUESTION] * len(row) for row in labels]
    counts = [
        Counter(part for label, part in zip(*pair) if label != NO_LOSS) for pair in zip(labels, parts, strict=True)
    ]
    whole = counts if average == "sample" else [sum(counts, Counter())] * len(labels)
    return [
        [0.0 if label == NO_LOSS else 1.0 if average == "token" else 1 / count[part] for label, part in zip(*pair)]
        for count, pair in zip(whole, zip(labels, parts))
    ]


def distributions(
    teacher: TeacherTokens | None, samples: list[Mapping[str, Any]], starts: Iterable[int]
) -> dict[str, torch.Tensor]:
    """What a batch has of the teacher's distributions. Dev samples have none: their loss is the cross-entropy."""
    return teacher.batch(samples, starts) if teacher is not None and BLOCKS in samples[0] else {}


class PackingCollator:
    """Puts the samples of a batch into one row, for a model that `use_packing` has prepared.

    The result has `input_ids`, `position_ids` (each sample begins at 0), `labels` (from next_tokens) and
    `token_weights` (from token_weights), each [1, N], and `lengths` and `samples` (their numbers in the dataset), each
    [B]. If parts have weights, it also has `parts`, the part of each label, [1, N].

    Args:
        average: what has the same weight in the loss; see token_weights.
        shares: the weight of each part, or None.
        teacher: the teacher's distributions, which the result then has as well (soft_targets.py), or None.
    """

    def __init__(self, average: str, shares: Shares | None = None, teacher: TeacherTokens | None = None):
        self.average, self.shares, self.teacher, self.cost = average, shares, teacher, packed_cost

    def __call__(self, samples: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [sample["input_ids"] for sample in samples]
        labels, parts = labelled(samples, self.shares)
        return {
            **({} if parts is None else {"parts": torch.tensor([list(chain(*parts))])}),
            **distributions(self.teacher, samples, accumulate(map(len, rows), initial=0)),
            "input_ids": torch.tensor([list(chain(*rows))]),
            "position_ids": torch.tensor([list(chain(*(range(len(row)) for row in rows)))]),
            "labels": torch.tensor([list(chain(*labels))]),
            "token_weights": torch.tensor([list(chain(*token_weights(labels, self.average, parts)))]),
            "lengths": torch.tensor(list(map(len, rows))),
            "samples": torch.tensor([sample["sample"] for sample in samples]),
        }


class PaddingCollator:
    """Pads the samples of a batch on the right to the longest one. No token sees padding, and padding has no loss.

    The result has `input_ids`, `attention_mask`, `labels` (from next_tokens) and `token_weights` (from token_weights),
    each [B, T], and `samples` (their numbers in the dataset), [B]. If parts have weights, it also has `parts`, the part
    of each label, [B, T].

    Args:
        average: what has the same weight in the loss; see token_weights.
        shares: the weight of each part, or None.
        teacher: the teacher's distributions, which the result then has as well (soft_targets.py), or None.
    """

    def __init__(self, average: str, shares: Shares | None = None, teacher: TeacherTokens | None = None):
        self.average, self.shares, self.teacher, self.cost = average, shares, teacher, padded_cost

    def __call__(self, samples: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [torch.tensor(sample["input_ids"]) for sample in samples]
        labels, parts = labelled(samples, self.shares)
        weights = token_weights(labels, self.average, parts)
        lengths_B = torch.tensor([len(row) for row in rows])
        pad = torch.nn.utils.rnn.pad_sequence
        mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        return {
            **({} if parts is None else {"parts": pad(list(map(torch.tensor, parts)), batch_first=True)}),
            **distributions(self.teacher, samples, range(0, mask_BT.numel(), mask_BT.shape[1])),
            "input_ids": pad(rows, batch_first=True),
            "attention_mask": mask_BT.long(),
            "labels": pad(list(map(torch.tensor, labels)), batch_first=True, padding_value=NO_LOSS),
            "token_weights": pad(list(map(torch.tensor, weights)), batch_first=True),
            "samples": torch.tensor([sample["sample"] for sample in samples]),
        }
