"""The samples that lm-eval writes with `--log_samples`: OUTPUT/MODEL/samples_TASK_TIME.jsonl.

A sample has the number of the question (`doc_id`), the question itself (`doc`), the requests (`arguments`), and the
metrics. Anybody may have written the files, so each line is checked.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from teacherlm.core.errors import UserError
from teacherlm.core.records import Record, read_records
from teacherlm.core.shapes import LONG_TEXT, flaw_of_shape

FILE = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.jsonl")
"""The name of lm-eval's file of a task's samples."""
QUESTION_FIELDS = ("question", "query", "sentence", "goal", "ctx", "premise", "input", "text")
"""The names that datasets have for the question of a sample."""
UNNAMED = ("acc", "exact_match")
"""The metrics that are looked for in samples of versions that do not name them."""
SAMPLE = {"doc_id": int, "filter?": str}


class Sample(NamedTuple):
    """A question as lm-eval has asked it, and the metrics of the answer.

    Attributes:
        question, choices: the texts in the dataset's fields; empty if there are no fields that are known.
        is_choice: whether the model chose among several answers, and did not write one.
    """

    line: int
    doc_id: int
    prompt: str
    question: str
    choices: Sequence[str]
    is_choice: bool
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Samples:
    """The samples of one task in one file.

    Attributes:
        task: the task in the name of the file.
        metrics: the names of the metrics that every sample has, in their order; those with a value that is a number.
    """

    path: Path
    task: str
    samples: Sequence[Sample] = field(repr=False)

    @property
    def is_choice(self) -> bool:
        return self.samples[0].is_choice

    @property
    def metrics(self) -> list[str]:
        return [name for name in self.samples[0].metrics if all(name in one.metrics for one in self.samples)]


@dataclass(frozen=True)
class Source:
    """The samples of one model, on one or several tasks.

    Attributes:
        name: the name of the model on the page.
        tasks: task -> its samples.
    """

    name: str
    place: Path
    tasks: Mapping[str, Samples] = field(repr=False)


def find_sources(place: Path) -> list[Path]:
    """The places of samples that a path stands for: itself, or the folders of the models in lm-eval's output folder."""
    if sample_files(place):
        return [place]
    return [folder for folder in sorted(place.glob("*")) if folder.is_dir() and sample_files(folder)]


def with_own_names(sources: Sequence[Source]) -> list[Source]:
    """The sources, where those that share a name are named by their places."""
    counts = Counter(source.name for source in sources)
    return [replace(one, name=f"{one.place} (lm-eval)") if counts[one.name] > 1 else one for one in sources]


def sample_files(place: Path) -> list[Path]:
    """lm-eval's files of samples that a path stands for: a file, or the newest file of each task in a folder."""
    if place.is_file() and (FILE.fullmatch(place.name) or place.name.startswith("samples_")):
        return [place]
    newest: dict[str, tuple[str, Path]] = {}
    for path in sorted(place.glob("samples_*.jsonl")):
        if match := FILE.fullmatch(path.name):
            newest[match["task"]] = max(newest.get(match["task"], ("", path)), (match["time"], path))
    return [path for _, path in newest.values()]


def read_source(place: Path) -> Source:
    """The samples in a file or a folder of lm-eval. A folder is named after its model.

    Raises:
        UserError: a file has another name than lm-eval gives, or a line is not a sample.
    """
    tasks = {}
    for path in sample_files(place):
        match = FILE.fullmatch(path.name)
        if match is None:
            raise UserError(
                f"{path}: a name such as samples_TASK_2026-01-31T12-00-00.000000.jsonl was expected, as lm-eval gives; "
                "the task is read from it"
            )
        tasks[match["task"]] = Samples(path, match["task"], read_samples(path))
    folder = place if place.is_dir() else place.parent
    return Source(f"{folder.resolve().name} (lm-eval)", place, tasks)


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file. Of several filters of the answers, the first one counts; its name is `none` mostly.

    Raises:
        UserError: a line is not a sample of lm-eval, or a question is there twice.
    """
    found: dict[int, Sample] = {}
    chosen: str | None = None
    for number, record in read_records(path):
        try:
            sample = sample_of(number, record)
        except ValueError as flaw:
            raise UserError(
                f"{path}, line {number}: this is not a sample of lm-eval: {flaw}; give a file that "
                "`lm_eval --log_samples` wrote"
            ) from None
        filtered = record.get("filter", "none")
        chosen = filtered if chosen is None else chosen
        if filtered != chosen:
            continue
        if sample.doc_id in found:
            raise UserError(
                f"{path}, line {number}: doc_id {sample.doc_id} was expected once, and line "
                f"{found[sample.doc_id].line} has it too; remove one of the two"
            )
        found[sample.doc_id] = sample
    return list(found.values())


def sample_of(number: int, record: Record) -> Sample:
    """A sample in a line's record.

    Raises:
        ValueError: the record does not have the form of a sample; the text names the field.
    """
    if flaw := flaw_of_shape(record, SAMPLE):
        raise ValueError(flaw)
    named = record.get("metrics", [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError("metrics: a list of names was expected")
    metrics = {name: float(record[name]) for name in named or UNNAMED if isinstance(record.get(name), int | float)}
    if not metrics:
        raise ValueError("metrics: a metric with a number was expected")
    arguments = record.get("arguments", [])
    prompt, (question, choices) = prompt_of(arguments), question_of(record.get("doc"))
    return Sample(number, record["doc_id"], prompt, question, choices, len(arguments) > 1, metrics)


def question_of(doc: Any) -> tuple[str, list[str]]:
    """The question and the choices in the dataset's fields, or empty ones."""
    fields = doc if isinstance(doc, dict) else {}
    question = next((fields[name] for name in QUESTION_FIELDS if isinstance(fields.get(name), str)), "")
    choices = fields.get("choices")
    return question, [one for one in choices if isinstance(one, str)] if isinstance(choices, list) else []


def prompt_of(arguments: Any) -> str:
    """The prompt of a sample's first request. Versions of lm-eval before 0.4.3 have lists in place of objects.

    Raises:
        ValueError: there is no request, or its prompt is not a text.
    """
    if not isinstance(arguments, dict | list):
        raise ValueError("arguments: the requests were expected, as an object or a list")
    request = arguments.get("gen_args_0") if isinstance(arguments, dict) else arguments
    while isinstance(request, list) and request:
        request = request[0]
    prompt = request.get("arg_0") if isinstance(request, dict) else request
    if flaw := flaw_of_shape(prompt, LONG_TEXT, "arguments.gen_args_0.arg_0"):
        raise ValueError(flaw)
    return str(prompt)
