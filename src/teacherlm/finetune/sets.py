"""Several training sets in one training: `--dataset_name creak/CREAK,ecqa/ECQA:0.5`.

The sets follow one another in one dataset, whose rows are numbered through. An epoch has each sample of a set as often
as the set's weight says. A sample whose question an earlier set has is left out. Samples that have a piece of a test
set are counted, or left out as well.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value, concatenate_datasets

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.ngrams import word_hashes, words_of
from teacherlm.catalog.overlaps import read_test_split
from teacherlm.catalog.prompt_sets import NUMBERS
from teacherlm.catalog.prompts import ANSWER_MARK, completion_start
from teacherlm.catalog.shares import EXPECTED, MAXIMUM, is_share
from teacherlm.catalog.text_parts import COLUMN
from teacherlm.catalog.top_logprobs import SUFFIX
from teacherlm.core.errors import UserError
from teacherlm.core.saved_datasets import is_saved
from teacherlm.core.terminal import plural
from teacherlm.runtime.processes import from_first

FORM = "FOLDER, FOLDER:WEIGHT or FOLDER:maxN, several with commas between them"
QUESTION = "text"
"""The field in which the questions of different sets are compared, if all sets have it."""
NOT_TEXTS = (*NUMBERS, COLUMN)
BATCH = 1000
"""Number of rows that are read at a time."""
Repetition = dict[str, Any]
"""A line of repeated.jsonl (docs/reference/formats.md)."""


@dataclass(frozen=True)
class TrainingSet:
    """One of the sets of --dataset_name.

    Attributes:
        weight: how often an epoch has each sample. With 1.5, it has every sample once and half of them once more.
        most: maximum number of samples that an epoch has; None means all.
    """

    folder: Path
    weight: float = 1.0
    most: int | None = None

    @property
    def share(self) -> str:
        """The weight or the maximum, as it is written after the folder."""
        return f"{MAXIMUM}{self.most}" if self.most is not None else f"{self.weight:g}"

    def epoch(self, samples: Sequence[int], seed: int) -> list[int]:
        """The samples that an epoch has, some of them several times.

        Args:
            samples: the samples of the set.
            seed: seed for choosing a part of them.
        """
        count = len(samples)
        whole, rest = int(self.weight), round((self.weight % 1) * count)
        if self.most is not None:
            whole, rest = (1, 0) if count <= self.most else (0, self.most)
        generator = torch.Generator().manual_seed(seed)
        chosen = sorted(torch.randperm(count, generator=generator)[:rest].tolist()) if rest else []
        return [*samples] * whole + [samples[index] for index in chosen]


def parse_sets(text: str) -> list[TrainingSet]:
    """Parse --dataset_name. A folder with this name is one set, even if its name has commas.

    Raises:
        UserError: the text has a different form, or two sets have the same folder.
    """
    if Path(text).is_dir():
        return [TrainingSet(Path(text))]
    found = []
    for part in text.split(","):
        folder, mark, share = part.rpartition(":")
        if Path(part).is_dir() or not mark:
            found.append(TrainingSet(Path(part)))
        elif not is_share(share):
            raise UserError(f"--dataset_name {text}: {FORM} was expected; {share!r} is {EXPECTED}")
        elif share.startswith(MAXIMUM):
            found.append(TrainingSet(Path(folder), most=int(share.removeprefix(MAXIMUM))))
        else:
            found.append(TrainingSet(Path(folder), weight=float(share)))
        if found[-1].folder == Path() and part.split(":")[0] != ".":
            raise UserError(f"--dataset_name {text}: {FORM} was expected; a folder is missing")
    resolved = [one.folder.resolve() for one in found]
    if len(set(resolved)) < len(found):
        raise UserError(f"--dataset_name {text}: a folder is given twice; give it once, with a weight")
    return found


@dataclass(frozen=True)
class TrainingRows:
    """The rows of all sets, one set after the other.

    Attributes:
        dataset: the rows.
        sets: the sets.
        starts: for each set, the number of rows before it.
        groups: the rows of each sample, if a sample has several; otherwise each row is a sample.
        pool: the samples that an epoch has, some of them several times; None means each once.
        repeated: what was found in other sets and in test sets, a record per finding (repeated.jsonl).
    """

    dataset: Dataset
    sets: tuple[TrainingSet, ...]
    starts: tuple[int, ...]
    groups: list[range] | None = None
    pool: list[int] | None = None
    repeated: tuple[Repetition, ...] = ()

    @property
    def has_each_once(self) -> bool:
        """Whether the flags ask for each sample of one set once."""
        return len(self.sets) == 1 and self.sets[0].share == "1"

    @property
    def count(self) -> int:
        """Number of samples in all sets."""
        return len(self.dataset) if self.groups is None else len(self.groups)

    def first_row(self, sample: int) -> int:
        return sample if self.groups is None else self.groups[sample].start

    def set_of(self, row: int) -> int:
        """The index of the set that has a row."""
        return bisect.bisect_right(self.starts, row) - 1

    def where(self, row: int) -> str:
        """What messages call a row."""
        if len(self.sets) == 1:
            return f"sample {row + 1}"
        index = self.set_of(row)
        return f"{self.sets[index].folder}, sample {row - self.starts[index] + 1}"

    def described(self) -> list[dict[str, Any]]:
        """Where the samples come from, for the manifest: a record per set.

        `first` is the number of the set's first row in the training, counted from 1. So the origin of each sample that
        a message, cut.jsonl or repeated.jsonl names is known.
        """
        left_out = Counter(self.set_of(row) for row in self.left_out)
        samples = range(self.count) if self.pool is None else self.pool
        of_epoch = Counter(self.set_of(self.first_row(sample)) for sample in samples)
        ends = (*self.starts[1:], len(self.dataset))
        return [
            {
                "set": one.folder.name,
                "share": one.share,
                "first": start + 1,
                "rows": end - start,
                "left_out": left_out[index],
                "samples_per_epoch": of_epoch[index],
            }
            for index, (one, start, end) in enumerate(zip(self.sets, self.starts, ends))
        ]

    @property
    def findings(self) -> str:
        """What was found, in words."""
        said = []
        again = [found for found in self.repeated if found["why"] == "question"]
        if again:
            said.append(f"left out: {plural(len(again), 'sample')} with a question of an earlier set")
            if others := sum("answers" in found for found in again):
                said[0] += f", {others} of them with another answer"
        for folder in dict.fromkeys(found["test_set"] for found in self.repeated if found["why"] == "test set"):
            found_there = [found for found in self.repeated if found.get("test_set") == folder]
            count = len({found["sample"] for found in found_there})
            done = "left out" if found_there[0]["left_out"] else "trained on"
            said.append(f"{done}: {plural(count, 'sample')} with a piece of the test set {folder}")
        return "; ".join(said)

    @property
    def left_out(self) -> set[int]:
        """The first rows of the samples that are left out."""
        return {found["sample"] - 1 for found in self.repeated if found["left_out"]}

    def of_an_epoch(self, seed: int) -> list[int]:
        """The samples that an epoch has by the sets' weights, without those that are left out.

        Raises:
            UserError: an epoch has no sample of a set.
        """
        gone = self.left_out
        of_sets: list[list[int]] = [[] for _ in self.sets]
        for sample in range(self.count):
            if (row := self.first_row(sample)) not in gone:
                of_sets[self.set_of(row)].append(sample)
        pool = []
        for one, samples in zip(self.sets, of_sets):
            epoch = one.epoch(samples, seed)
            if not epoch:
                why = f"its share is {one.share} of {plural(len(samples), 'sample')}" if samples else "all are left out"
                raise UserError(f"{one.folder}: an epoch would have no sample of this set ({why}); leave the set out")
            pool += epoch
        return pool

    def texts(self) -> Iterator[tuple[int, dict[str, str]]]:
        """(the first row of its sample, the texts) of each row."""
        first = None if self.groups is None else [rows.start for rows in self.groups for _ in rows]
        columns = [name for name in self.dataset.column_names if name not in NOT_TEXTS and not name.endswith(SUFFIX)]
        row = 0
        for batch in self.dataset.select_columns(columns).iter(BATCH):
            for texts in zip(*batch.values()):
                yield row if first is None else first[row], dict(zip(columns, texts))
                row += 1

    def questions_again(self, question: str) -> Iterator[Repetition]:
        """The samples whose question an earlier set has.

        Args:
            question: the field whose text up to the answer is the question.
        """
        known: dict[str, tuple[int, str]] = {}  # a question -> the first row that has it, and the answer there
        of_set: dict[str, tuple[int, str]] = {}
        last = 0
        before = -1
        for row, texts in self.texts():
            if row == before:
                continue  # another text of the same sample
            before = row
            if self.set_of(row) != last:
                known |= of_set
                of_set, last = {}, self.set_of(row)
            asked, answer = question_and_answer(texts[question] or "")
            if asked not in known:
                of_set.setdefault(asked, (row, answer))
                continue
            first, other = known[asked]
            found: Repetition = {"sample": row + 1, "why": "question", "of": first + 1, "left_out": True}
            yield found | ({} if answer == other else {"answers": [other, answer]})

    def in_test_set(self, folder: Path, gone: Container[int], leave_out: bool) -> Iterator[Repetition]:
        """The samples that have a piece of a test set's questions (catalog/overlaps.py) in one of their texts.

        Args:
            gone: the first rows of samples that are left out already.
        """
        if not is_saved(folder):
            raise UserError(f"--test_sets: {folder}: no such test set; data_prepare.py makes it")
        split = read_test_split(load_benchmark(folder.name), folder)
        said: set[tuple[int, int]] = set()
        for row, texts in self.texts():
            for text in () if row in gone else texts.values():
                words = words_of(text or "")
                for question, piece in split.overlaps(words, word_hashes(words)):
                    if (row, question) not in said:
                        said.add((row, question))
                        found = {"sample": row + 1, "why": "test set", "test_set": folder.name, "question": question}
                        yield {**found, "text": piece, "left_out": leave_out}


def question_and_answer(text: str) -> tuple[str, str]:
    """A sample's question as words without punctuation, for comparing, and the letter of its right answer, or the words
    after an open question."""
    start = completion_start(text)
    if start is None:
        return " ".join(words_of(text)), ""
    is_letter = text.endswith(ANSWER_MARK, 0, start)
    return " ".join(words_of(text[:start])), text[start : start + 1] if is_letter else text[start:].strip(" .")


def join_sets(sets: Sequence[TrainingSet], datasets: Sequence[Dataset], fields: Iterable[str]) -> TrainingRows:
    """The rows of several sets, with the columns that training needs.

    Args:
        datasets: the rows of each set.
        fields: the fields that are trained on.
    """
    everywhere = set.intersection(*(set(dataset.column_names) for dataset in datasets))
    columns = [name for name in dict.fromkeys((QUESTION, *fields, NUMBERS[0])) if name in everywhere]
    further = dict.fromkeys(
        name for one in datasets for name in one.column_names if name == COLUMN or name.endswith(SUFFIX)
    )
    parts = [with_empty(dataset, further).select_columns([*columns, *further]) for dataset in datasets]
    starts = itertools.accumulate(map(len, parts[:-1]), initial=0)
    texts = {name: Value("string") for name in columns if name != NUMBERS[0]}
    if any(part.features != parts[0].features for part in parts):
        # Otherwise `cast` would write a cache into the dataset's folder.
        parts = [part.cast(Features({**part.features, **texts}), keep_in_memory=True) for part in parts]
    return TrainingRows(concatenate_datasets(parts), tuple(sets), tuple(starts))


def with_empty(dataset: Dataset, columns: Iterable[str]) -> Dataset:
    """A dataset with empty texts in the columns that it does not have."""
    for column in columns:
        if column not in dataset.column_names:
            dataset = dataset.add_column(column, [""] * len(dataset))
    return dataset


def choose_epoch(
    rows: TrainingRows, fields: Sequence[str], seed: int, tests: Sequence[Path], drop: bool
) -> TrainingRows:
    """The rows with the samples of an epoch, and with what was found in other sets and in test sets.

    Args:
        fields: the fields that are trained on.
        tests: the folders of test sets.
        drop: whether samples with a piece of a test set are left out.

    Raises:
        UserError: there is no such test set, or an epoch has no sample of a set.
    """
    if rows.has_each_once and not tests:
        return rows

    def find() -> list[Repetition]:
        question = QUESTION if QUESTION in rows.dataset.column_names else fields[0]
        found = [] if len(rows.sets) == 1 else list(rows.questions_again(question))
        gone = {one["sample"] - 1 for one in found}
        for folder in tests:
            found += rows.in_test_set(folder, gone, drop)
        return found

    rows = replace(rows, repeated=tuple(from_first(find)))
    if rows.has_each_once and not rows.left_out:
        return rows
    return replace(rows, pool=rows.of_an_epoch(seed))
