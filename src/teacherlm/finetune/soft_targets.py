"""The teacher's distribution as the target of a token (`--kl_weight`), beside the token itself.

Enhance keeps, for each token that the teacher wrote, its K most likely tokens and the probability of all others
together (catalog/top_logprobs.py). The loss of such a token is

    (1 - w) x cross-entropy + w x KL(teacher || student),

where the KL divergence is that of the K + 1 outcomes (Hinton et al. 2015, arXiv 1503.02531, with the probabilities that
were kept). With K = the vocabulary it is the whole divergence; with a smaller K it is a lower bound, because outcomes
are joined.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from teacherlm.catalog.prompt_sets import SHUFFLED
from teacherlm.catalog.top_logprobs import SUFFIX, TopLogprobs, decode, vocabulary_digest
from teacherlm.core.errors import UserError
from teacherlm.finetune.token_losses import divergence, loss_and_gradient

LEAST_BLOCK = 4
"""Minimum number of tokens in a row that a text must have in common with what the teacher wrote. Shorter pieces may be
there by chance, at a place where the teacher would have continued otherwise."""
BLOCKS = "blocks"
"""The column of tokenized samples that says which tokens the teacher wrote: (index of the field, first token of the
sample, first token of the teacher, number of tokens) of each piece."""
Block = tuple[int, int, int, int]
NAMES = ("soft_places", "soft_ids", "soft_logprobs")
"""The parts of a batch that `SoftTargets.of_batch` reads."""


def fields_of(dataset: Dataset) -> list[str]:
    """The fields of a dataset that have distributions."""
    return [name for name in dataset.column_names if name.endswith(SUFFIX)]


def common_blocks(ids: Sequence[int], written: Sequence[int]) -> list[tuple[int, int, int]]:
    """The pieces that a sample has in common with what the teacher wrote, in their order: (first token of the sample,
    first token of the teacher, number of tokens).

    The tokens around a text may differ: the student's text follows another prompt, and blanks are cleaned.
    """
    found = difflib.SequenceMatcher(None, ids, written, autojunk=False).get_matching_blocks()
    return [(block.a, block.b, block.size) for block in found if block.size >= min(LEAST_BLOCK, len(written) or 1)]


class TeacherTokens:
    """The distributions in a dataset.

    Args:
        dataset: the rows that the samples are numbered by.
        tokenizer: the student's tokenizer, whose vocabulary has to be the teacher's.
        vocabulary: number of tokens that the student has logits for; None means those of the tokenizer.

    Raises:
        UserError: the dataset has no distributions.
    """

    def __init__(self, dataset: Dataset, tokenizer: Any, vocabulary: int | None = None):
        self.fields, self.tokens = fields_of(dataset), vocabulary or len(tokenizer)
        if not self.fields:
            raise UserError(
                "--kl_weight: the dataset has no field KIND_top_logprobs; enhance.py --top_logprobs K keeps the "
                "teacher's distribution, and data_prepare.py puts it into the dataset"
            )
        self.dataset = dataset.select_columns(self.fields)
        self.vocabulary = vocabulary_digest(tokenizer)

    def read(self, row: int, field: int, where: str) -> TopLogprobs | None:
        """The distributions in a field of a row; None if the row has none.

        Raises:
            UserError: the field is damaged, or the teacher has another vocabulary.
        """
        text = self.dataset[row][self.fields[field]]
        if not text:
            return None
        try:
            found = decode(text, self.tokens)
        except ValueError as error:
            raise UserError(f"{where}: the field {self.fields[field]!r}: {error}; run enhance.py again") from error
        if found.vocabulary != self.vocabulary:
            raise UserError(
                f"{where}: --kl_weight: the teacher that wrote this text has another vocabulary than the student; "
                "leave the flag out, or use a student of the teacher's family"
            )
        return found

    def blocks(self, row: int, field: str, ids: Sequence[int], where: str, opened: int = 0) -> list[Block]:
        """The tokens of a sample that the teacher wrote.

        Args:
            field: the field that is trained on.
            ids: the sample's tokens.
            opened: number of tokens on the left among which the teacher's are not looked for.
        """
        if field.endswith(SHUFFLED):
            raise UserError(
                f"--kl_weight: the field {field!r} has the explanations of other samples, at which the teacher's "
                "distribution is not known"
            )
        found: list[Block] = []
        for index in range(len(self.fields)):
            top = self.read(row, index, where)
            if top is not None:
                blocks = common_blocks(ids[opened:], top.written_T.tolist())
                found += [(index, opened + first, *others) for first, *others in blocks]
        return found

    def batch(self, samples: Sequence[Mapping[str, Any]], starts: Iterable[int]) -> dict[str, torch.Tensor]:
        """What a batch has of the distributions: the place of each token whose distribution is known, [M], its most
        likely tokens, [M, K], and their log-probabilities, [M, K + 1].

        Log-probabilities are float16, but stored as int16: DeepSpeed would convert numbers to the model's precision.

        Args:
            starts: the place of each sample's first token in the batch.
        """
        places, ids, logprobs = [], [], []
        for sample, start in zip(samples, starts):
            for field, first, of_teacher, count in sample[BLOCKS]:
                top = self.read(sample["sample"] - 1, field, f"sample {sample['sample']}")
                assert top is not None  # the sample's tokens have been found in it
                skip = int(first == 0)  # nothing predicts the first token
                of_block = slice(of_teacher + skip, of_teacher + count)
                places.append(np.arange(first + skip, first + count) + (start - 1))
                ids.append(top.ids_TK[of_block])
                logprobs.append(top.logprobs_TK1[of_block])
        most = max((part.shape[1] for part in ids), default=1)
        ids = [np.pad(part, ((0, 0), (0, most - part.shape[1])), mode="edge") for part in ids]
        logprobs = [widened(part, most) for part in logprobs]
        found_ids = np.concatenate(ids) if ids else np.empty((0, most), np.int64)
        found_logprobs = np.concatenate(logprobs) if logprobs else np.empty((0, most + 1), np.float32)
        values = [np.concatenate(places) if places else np.empty(0, np.int64), found_ids]
        values.append(found_logprobs.astype(np.float16).view(np.int16))
        return {name: torch.from_numpy(value) for name, value in zip(NAMES, values, strict=True)}


def widened(logprobs_TK1: np.ndarray, most: int) -> np.ndarray:
    """Log-probabilities of `most` tokens and of the rest. The added tokens, which repeat the last one, have none."""
    missing = most + 1 - logprobs_TK1.shape[1]
    none = np.full((len(logprobs_TK1), missing), -np.inf, np.float32)
    return np.concatenate([logprobs_TK1[:, :-1], none, logprobs_TK1[:, -1:]], 1)


@dataclass(frozen=True)
class SoftTargets:
    """The distributions that tokens of a batch have as targets.

    Attributes:
        index_N: for each place of the batch, the index of its distribution, or -1.
        ids_MK: the most likely tokens of each distribution. A token may be there several times; all but the first
            time, its probability is 0.
        probs_MK1: their probabilities, then that of all other tokens, float32.
        share: the weight of the divergence, beside 1 - share of the cross-entropy.
    """

    index_N: torch.Tensor
    ids_MK: torch.Tensor
    probs_MK1: torch.Tensor
    share: float

    @staticmethod
    def of_batch(batch: dict[str, Any], count: int, share: float) -> "SoftTargets | None":
        """Take the distributions out of a batch; None if it has none.

        Args:
            count: number of places in the batch.
        """
        if NAMES[0] not in batch:
            return None
        places_M, ids_MK, logprobs_MK1 = (batch.pop(name) for name in NAMES)
        index_N = torch.full((count,), -1, dtype=torch.int64, device=places_M.device)
        index_N[places_M] = torch.arange(len(places_M), device=places_M.device)
        probs_MK1 = logprobs_MK1.view(torch.float16).float().exp()
        return SoftTargets(index_N, ids_MK, probs_MK1 / probs_MK1.sum(1, keepdim=True), share)

    def at(self, places_N: torch.Tensor) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Which of these places have a distribution, their tokens and their probabilities."""
        index_N = self.index_N[places_N]
        rows_M = (index_N >= 0).nonzero()[:, 0]
        return rows_M, self.ids_MK[index_N[rows_M]], self.probs_MK1[index_N[rows_M]]

    def loss_and_gradient(
        self, logits_NV: torch.Tensor, labels_N: torch.Tensor, weight_N1: torch.Tensor, places_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token weight x loss of some places, and its gradient by the logits, which overwrites them."""
        return loss_and_gradient(logits_NV, labels_N, weight_N1, (*self.at(places_N), self.share))

    def losses(self, losses_N: torch.Tensor, logits_NV: torch.Tensor, places_N: torch.Tensor) -> torch.Tensor:
        """The cross-entropies of places, with the divergences where there are distributions."""
        rows_M, ids_MK, probs_MK1 = self.at(places_N)
        if not len(rows_M):
            return losses_N
        logprobs_MV = logits_NV[rows_M].float().log_softmax(-1)
        found_MK = logprobs_MV.gather(1, ids_MK)
        others_M1 = logprobs_MV.scatter(1, ids_MK, -torch.inf).logsumexp(-1, keepdim=True)
        divergence_M = divergence(probs_MK1, torch.cat([found_MK, others_M1], 1))
        mixed_M = (1 - self.share) * losses_N[rows_M] + self.share * divergence_M
        return losses_N.index_put((rows_M,), mixed_M)
