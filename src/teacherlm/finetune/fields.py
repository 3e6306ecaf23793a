"""The texts to train on: one field of the dataset, a weighted mixture of fields, or a curriculum of ordered fields."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from teacherlm.core.errors import UserError

FORM = "FIELD, FIELD:WEIGHT,FIELD:WEIGHT (mixed) or FIELD,FIELD (one after the other in each epoch)"


@dataclass(frozen=True)
class TrainingFields:
    """The fields of a dataset to train on.

    Attributes:
        weights: maps each field to the number of times that an epoch has each of its samples. With 1.5, an epoch has
            every sample once and half of the samples once more.
        in_order: whether an epoch has all samples of the first field before those of the second, and so on.
    """

    weights: dict[str, float]
    in_order: bool


def parse_fields(text: str) -> TrainingFields:
    """Parse --task_type: `cot_tail`, `text:1,cot_tail:2` or `text,cot_tail`.

    Raises:
        UserError: the text has a different form, a field occurs twice, or a weight is not positive.
    """
    parts = text.split(",")
    names = [part.split(":")[0] for part in parts]
    weighted = [":" in part for part in parts]
    numbers = [part.split(":", 1)[1] for part in parts if ":" in part]
    if not all(names) or len(set(names)) < len(names) or len(set(weighted)) > 1:
        raise UserError(f"--task_type {text}: {FORM} was expected, with each field at most once")
    for number in numbers:
        if not re.fullmatch(r"\d+(\.\d+)?", number) or not float(number):
            raise UserError(f"--task_type {text}: the weight {number!r} is not a positive number")
    weights = dict(zip(names, map(float, numbers))) if numbers else dict.fromkeys(names, 1.0)
    return TrainingFields(weights, in_order=len(names) > 1 and not numbers)


def choose_samples(fields: TrainingFields, samples: Sequence[int], seed: int) -> list[tuple[str, list[int]]]:
    """For each field, the indices of the samples that an epoch has, some of them several times.

    Args:
        samples: the samples of a field with weight 1.
        seed: seed for choosing the samples for the fractional part of a weight.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for field, weight in fields.weights.items():
        whole = int(weight)
        rest = torch.randperm(len(samples), generator=generator)[: round((weight - whole) * len(samples))]
        chosen.append((field, [*samples] * whole + [samples[place] for place in sorted(rest.tolist())]))
    return chosen


def dataset_order(samples: list[int]) -> list[int]:
    """The positions of an epoch's samples, sorted into the order of the dataset, for a mixture with --shuffle false.

    All fields of a sample come before the next sample, in the order of the fields.

    Args:
        samples: for each sample of the epoch, its number in the dataset.
    """
    return sorted(range(len(samples)), key=samples.__getitem__)  # the sort is stable: fields keep their order


@dataclass(frozen=True)
class TextChoice:
    """Which of its texts each sample has in an epoch, where the dataset has a row per text (`each_epoch`).

    Text e mod k of k texts is in epoch e. A sample that an epoch has several times has the texts that follow.

    Attributes:
        first: for each sample of an epoch, the index of its first tokenized text.
        count: for each sample of an epoch, the number of its texts, which follow one another.
        shift: for each sample of an epoch, how often it is in the epoch before.
    """

    first: torch.Tensor
    count: torch.Tensor
    shift: torch.Tensor

    @property
    def rows(self) -> int:
        """Number of tokenized texts."""
        return int(self.count.sum())

    def of_epoch(self, epoch: int) -> torch.Tensor:
        """For each sample of an epoch, the index of the tokenized text that the epoch has."""
        return self.first + (epoch + self.shift) % self.count

    def select(self, order: list[int]) -> "TextChoice":
        """The same samples in another order."""
        return TextChoice(self.first[order], self.count[order], self.shift[order])


def rows_by_sample(numbers: list[int]) -> list[range]:
    """The rows of each sample.

    Args:
        numbers: for each row of the dataset, the number of its sample. The rows of a sample follow one another.
    """
    starts = [row for row, number in enumerate(numbers) if row == 0 or number != numbers[row - 1]]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(numbers)])]


def choose_texts(
    fields: TrainingFields, groups: list[range], seed: int, pool: Sequence[int] | None = None
) -> tuple[TextChoice, list[int], list[int]]:
    """The samples of an epoch where a sample has several texts.

    Args:
        groups: the rows of each sample.
        pool: the samples of a field with weight 1; None means each once.

    Returns:
        The choice of texts, which belongs to the texts that `tokenize` returns; the number of samples per field; for
        each sample of the epoch, its index.
    """
    chosen = choose_samples(fields, range(len(groups)) if pool is None else pool, seed)
    samples = [index for _, indices in chosen for index in indices]
    count = torch.tensor([len(groups[index]) for index in samples])
    shift = torch.tensor([times for _, indices in chosen for times in earlier(indices)])
    return TextChoice(count.cumsum(0) - count, count, shift), [len(indices) for _, indices in chosen], samples


def earlier(samples: Sequence[int]) -> Iterator[int]:
    """For each place, how often its sample has a place before it."""
    seen: Counter[int] = Counter()
    for sample in samples:
        yield seen[sample]
        seen[sample] += 1


class PhaseSampler(torch.utils.data.Sampler[int]):
    """The order of an epoch: one phase after the other, each shuffled, with a different order in each epoch.

    The order depends only on seed and epoch, so a resumed run continues with the same order.

    Args:
        phases: number of samples in each phase.
        seed: seed of the order.
        shuffle: whether to shuffle; False keeps the order of the samples in every epoch.
        multiple: number of devices x batch per device. The epoch is filled up to a multiple of it with the index after
            the last sample. That index is a sample without a loss (trainer.with_filler), so all processes have the same
            number of batches and no sample counts twice.
        texts: which text each sample has in an epoch, if samples have several texts.
    """

    def __init__(
        self, phases: list[int], seed: int, shuffle: bool = True, multiple: int = 1, texts: TextChoice | None = None
    ):
        self.phases, self.seed, self.shuffle, self.texts, self.epoch = phases, seed, shuffle, texts, 0
        self.samples = sum(phases)
        self.filler = self.samples if texts is None else texts.rows
        self.length = -(-self.samples // multiple) * multiple

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        first = 0
        rows = None if self.texts is None else self.texts.of_epoch(self.epoch)
        for count in self.phases:
            order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
            yield from (order + first if rows is None else rows[order + first]).tolist()
            first += count
        yield from [self.filler] * (self.length - self.samples)
