"""Make batches from samples: packed one after the other in a row, or padded to one length."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

NO_LOSS = -100


def next_tokens(sample: Mapping[str, Any]) -> list[int]:
    """The label of each position: the next token, or NO_LOSS.

    Args:
        sample: a mapping with `input_ids`, and `skipped`, the number of tokens on the left that have no loss.
    """
    ids = sample["input_ids"]
    first = max(1, sample["skipped"])  # nothing predicts the first token
    return [NO_LOSS] * min(first - 1, len(ids)) + ids[first:] + [NO_LOSS] * (len(ids) >= first)


def token_weights(labels: list[list[int]], average: str) -> list[list[float]]:
    """The weight of each position of each sample in the mean of a step.

    Args:
        average: what has the same weight: "token" for all tokens with a label; "sample" for all samples; "batch" for
            all batches, and within a batch for all its tokens, which is the reference's mean (He et al. 2023,
            finetune.py).
    """
    counts = [sum(label != NO_LOSS for label in row) for row in labels]
    whole = {"token": [1] * len(labels), "sample": counts, "batch": [sum(counts)] * len(labels)}[average]
    return [[0.0 if label == NO_LOSS else 1 / count for label in row] for row, count in zip(labels, whole)]


class PackingCollator:
    """Puts the samples of a batch into one row, for a model that `use_packing` has prepared.

    The result has `input_ids`, `position_ids` (each sample begins at 0), `labels` (from next_tokens) and
    `token_weights` (from token_weights), each [1, N], and `lengths` and `samples` (their numbers in the dataset), each
    [B].

    Args:
        average: what has the same weight in the loss; see token_weights.
    """

    def __init__(self, average: str):
        self.average = average

    def __call__(self, samples: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [sample["input_ids"] for sample in samples]
        labels = list(map(next_tokens, samples))
        return {
            "input_ids": torch.tensor([list(chain(*rows))]),
            "position_ids": torch.tensor([list(chain(*(range(len(row)) for row in rows)))]),
            "labels": torch.tensor([list(chain(*labels))]),
            "token_weights": torch.tensor([list(chain(*token_weights(labels, self.average)))]),
            "lengths": torch.tensor(list(map(len, rows))),
            "samples": torch.tensor([sample["sample"] for sample in samples]),
        }


class PaddingCollator:
    """Pads the samples of a batch on the right to the longest one. No token sees padding, and padding has no loss.

    The result has `input_ids`, `attention_mask`, `labels` (from next_tokens) and `token_weights` (from token_weights),
    each [B, T], and `samples` (their numbers in the dataset), [B].

    Args:
        average: what has the same weight in the loss; see token_weights.
    """

    def __init__(self, average: str):
        self.average = average

    def __call__(self, samples: list[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [torch.tensor(sample["input_ids"]) for sample in samples]
        labels = list(map(next_tokens, samples))
        weights = token_weights(labels, self.average)
        lengths_B = torch.tensor([len(row) for row in rows])
        pad = torch.nn.utils.rnn.pad_sequence
        mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        return {
            "input_ids": pad(rows, batch_first=True),
            "attention_mask": mask_BT.long(),
            "labels": pad(list(map(torch.tensor, labels)), batch_first=True, padding_value=NO_LOSS),
            "token_weights": pad(list(map(torch.tensor, weights)), batch_first=True),
            "samples": torch.tensor([sample["sample"] for sample in samples]),
        }
