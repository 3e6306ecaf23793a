"""A model's result on a task, and its answer to each question.

Anybody may have written the files. Each is checked against a shape, so that the rest of the report can rely on it. A
file that does not fit is skipped and reported in `missing`.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from teacherlm.core import manifests
from teacherlm.core.errors import UserError, one_line
from teacherlm.core.names import file_name
from teacherlm.core.records import Record, read_records
from teacherlm.core.results import read_result
from teacherlm.core.shapes import LONG_TEXT, flaw_of_shape
from teacherlm.report.shown_manifests import checked_manifest

SAMPLE = {
    "doc_id": (int, str),
    "prompt": LONG_TEXT,
    "task?": str,
    "conversation?": LONG_TEXT,
    "choice?": str,
    "loglikelihoods?": {str: float},
}

ROUNDED = 1e-9
"""Maximum difference between a mean and the value in a result's file."""

Question = tuple[Any, ...]
"""The identity of a question: task, number, and a digest of the prompt."""


class Answers(NamedTuple):
    """A model's answers to a task's questions.

    Attributes:
        values: question -> the value of the metric: 1 if the answer is right and 0 if it is wrong, or a number between
            them, such as the share of right ones of several answers. It is empty if the metric is not the mean of the
            questions' values.
        chance: the accuracy of random choices, or None if the questions have no choices.
    """

    values: dict[Question, float]
    chance: float | None

    @property
    def right(self) -> dict[Question, bool]:
        """Question -> whether the model is right; empty if a value is neither 0 nor 1."""
        is_exact = all(value in (0, 1) for value in self.values.values())
        return {question: value == 1 for question, value in self.values.items()} if is_exact else {}


@dataclass(frozen=True)
class Scored:
    """The result of one model on one task.

    Attributes:
        name: the model's name on the page: `smollm2-135m (untrained)`, `RUN, checkpoint-50`.
        step: the step of the checkpoint, 0 for the untrained student.
        path: the result's file.
        result: the content of the file.
        missing: the list to which a sentence is added if the samples cannot be read.
    """

    name: str
    step: int
    path: Path
    result: dict[str, Any] = field(repr=False)
    missing: list[str] = field(repr=False, compare=False)

    @property
    def task(self) -> str:
        return str(self.result["task"])

    def samples(self) -> Iterator[Record]:
        """The records with the model's answers, one per question. There are none if the file is missing."""
        path = self.path.with_name(f"{self.path.stem}_samples.jsonl")
        return read_shaped(path, SAMPLE, "sample of an evaluation", "evaluate", self.missing)

    @cached_property
    def answers(self) -> Answers:
        metric, values, choices, chance = self.result["metric"], {}, 0, 0.0
        for record in self.samples():
            question = (record.get("task"), record["doc_id"], digest_of(record["prompt"]))
            value = record.get(metric)
            if isinstance(value, int | float):
                values[question] = float(value)
            if count := len(record.get("loglikelihoods", ())):
                choices, chance = choices + 1, chance + 1 / count
        if any(value not in (0, 1) for value in values.values()) and not self.is_mean_of(values.values()):
            values = {}
        return Answers(values, chance / choices if choices else None)

    def is_mean_of(self, values: Collection[float]) -> bool:
        """Whether the result is the mean of these values, and not another function of them."""
        value = self.result["value"]
        is_share = all(0 <= one <= 1 for one in values)
        return value is not None and is_share and abs(math.fsum(values) / len(values) - value) <= ROUNDED

    @cached_property
    def settings(self) -> str | None:
        """A text that is the same for results of other models that were scored in the same way on the same questions.

        It has the arguments and the digests of the inputs without the model, or is None without a manifest.
        """
        try:
            manifest = checked_manifest(manifests.manifest_of(self.path))
        except (OSError, ValueError):  # read_manifests reports it
            return None
        inputs = {name: one["sha256"] for name, one in manifest.get("inputs", {}).items() if name != "model"}
        return json.dumps([manifest.get("version", 1), manifest.get("arguments", {}), inputs], sort_keys=True)


def read_results(paths: Iterable[Path], missing: list[str]) -> Iterator[Scored]:
    for path in sorted(paths):
        if path.name.startswith(".") or path.name.endswith(manifests.NAME):
            continue
        try:
            result = read_result(path)
            if file_name(result["task"]) != path.stem:  # the tables are named after the task
                raise ValueError(f"task: the task in the file's name was expected, found {result['task']!r:.60}")
        except (OSError, ValueError) as error:
            missing.append(
                f"evaluate: {path} cannot be read as a result ({one_line(error)}); remove it and score the model again"
            )
            continue
        place = path.parent.name
        if step := step_of(path.parent):
            yield Scored(f"{path.parent.parent.name}, {place}", step, path, result, missing)
        else:
            yield Scored(f"{place} (untrained)", 0, path, result, missing)


def step_of(checkpoint: Path) -> int:
    """N for a folder checkpoint-N, 0 for any other folder."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else 0


def digest_of(text: str) -> bytes:
    """A short digest of a text that is only compared, because the text may be long."""
    return blake2b(text.encode(), digest_size=8).digest()


def read_shaped(path: Path, shape: dict[str, Any], what: str, stage: str, missing: list[str]) -> Iterator[Record]:
    """The records of a stage's file. The first one without the shape is reported in `missing`, and ends the iteration.

    Args:
        what: what a record is, for the message.
    """
    try:
        for number, record in read_records(path) if path.is_file() else ():
            if flaw := flaw_of_shape(record, shape):
                raise UserError(f"{path}, line {number}: this is not a {what}: {flaw}")
            yield record
    except UserError as error:
        say(missing, f"{stage}: {one_line(error)}")


def say(missing: list[str], said: str) -> None:
    """Add a sentence to `missing`, unless it is already there."""
    if said not in missing:
        missing.append(said)
