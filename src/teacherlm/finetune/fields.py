"""What is trained on: a field of the dataset, a mixture of fields by weights, or a curriculum of fields in order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from teacherlm.core.errors import UserError

FORM = "FIELD, FIELD:WEIGHT,FIELD:WEIGHT (mixed) or FIELD,FIELD (one after the other in each epoch)"


@dataclass(frozen=True)
class Task:
    """Fields of a dataset that are trained on.

    Attributes:
        weights: field -> how often an epoch has each sample in it. Of 1.5, every sample once and half of them again.
        in_order: whether an epoch has all of the first field before the second, and so on.
    """

    weights: dict[str, float]
    in_order: bool


def parse_task(text: str) -> Task:
    """`cot_tail`, `text:1,cot_tail:2` or `text,cot_tail`.

    Raises:
        UserError: another form, a field twice, or a weight that is not positive.
    """
    parts = text.split(",")
    names = [part.split(":")[0] for part in parts]
    weighted = [":" in part for part in parts]
    numbers = [part.split(":", 1)[1] for part in parts if ":" in part]
    if not all(names) or len(set(names)) < len(names) or len(set(weighted)) > 1:
        raise UserError(f"--task_type {text}: expected {FORM}, each field once")
    for number in numbers:
        if not re.fullmatch(r"\d+(\.\d+)?", number) or not float(number):
            raise UserError(f"--task_type {text}: the weight {number!r} is not a positive number")
    weights = dict(zip(names, map(float, numbers))) if numbers else dict.fromkeys(names, 1.0)
    return Task(weights, in_order=len(names) > 1 and not numbers)


def choose_samples(task: Task, count: int, seed: int) -> list[tuple[str, list[int]]]:
    """For each field the numbers of the samples that an epoch has in it, some of them several times.

    Args:
        count: of the dataset's samples.
        seed: of the choice of those that a weight's fraction takes.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for field, weight in task.weights.items():
        whole = int(weight)
        rest = torch.randperm(count, generator=generator)[: round((weight - whole) * count)]
        chosen.append((field, [*range(count)] * whole + sorted(rest.tolist())))
    return chosen


def dataset_order(samples: list[int]) -> list[int]:
    """Positions of an epoch's samples in the dataset's order, for --shuffle false of a mixture: each sample in all of
    its fields, in the order of the fields, before the next sample.

    Args:
        samples: the number of each in the dataset.
    """
    return sorted(range(len(samples)), key=samples.__getitem__)  # the sort is stable: fields keep their order


class PhaseSampler(torch.utils.data.Sampler[int]):
    """The order of an epoch: phase after phase, shuffled within each, differently in each epoch.

    It depends on seed and epoch alone, so that a resumed run goes on with the same order.

    Args:
        phases: number of samples of each phase.
        shuffle: False keeps the order of the samples, in every epoch.
        multiple: of devices x their batch. The epoch is filled up to a multiple of it with the index after the last
            sample, which stands for a sample without a loss (trainer.with_filler), so that all processes have as many
            batches and no sample counts twice.
    """

    def __init__(self, phases: list[int], seed: int, shuffle: bool = True, multiple: int = 1):
        self.phases, self.seed, self.shuffle, self.epoch = phases, seed, shuffle, 0
        self.samples = sum(phases)
        self.length = -(-self.samples // multiple) * multiple

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        first = 0
        for count in self.phases:
            order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
            yield from (order + first).tolist()
            first += count
        yield from [self.samples] * (self.length - self.samples)
