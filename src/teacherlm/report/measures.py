"""The two measures of a model side by side: the letter that it finds likeliest, and the answer that it writes."""

from collections.abc import Sequence
from typing import Any

from teacherlm.core.records import Record
from teacherlm.core.results import GENERATED
from teacherlm.report.page import Cell, Part, Section
from teacherlm.report.scored import Scored
from teacherlm.report.training_run import Run

HEAD = (
    *("model", "questions", "both right", "only the letter right", "only the text right", "both wrong"),
    *("texts without an answer", "texts cut off", "tokens per text"),
)
TEXTS_HEAD = ("model", "question", "right answer", "letter", "found in the text", "text")
MOST_TEXTS = 50
"""Maximum number of questions of a model whose texts are shown."""


def measures(runs: Sequence[Run], untrained: Sequence[Scored], tasks: Sequence[str]) -> Section:
    """For each task with both measures: how often they agree, and the texts of the questions where they do not."""
    parts = []
    for task in tasks:
        written = [one for one in shown(runs, untrained) if one.task == task + GENERATED]
        pairs = [(letters, one) for one in written if (letters := of_letters(one, task, runs, untrained))]
        rows, texts = [], []
        for letters, one in pairs:
            row, differing = compared(letters, one)
            rows.append(row)
            texts += differing[:MOST_TEXTS]
        if rows:
            words = (
                "Each question was asked twice: the letter with the highest log-likelihood, and the answer that the "
                "model wrote. A text without a readable answer counts as wrong."
            )
            parts.append(Part(task, words, head=HEAD, rows=rows, name=f"measures-{task}"))
        if texts:
            words = f"Questions where only one of the two is right, at most {MOST_TEXTS} per model."
            parts.append(Part(f"{task}: texts", words, head=TEXTS_HEAD, rows=texts, name=f"texts-{task}"))
    return Section("measures", "Letters and texts", parts)


def shown(runs: Sequence[Run], untrained: Sequence[Scored]) -> list[Scored]:
    """The untrained students, and the last checkpoint of each run and task."""
    found = list(untrained)
    for run in runs:
        last = {one.task: one for one in run.checkpoints}
        found += last.values()
    return found


def of_letters(written: Scored, task: str, runs: Sequence[Run], untrained: Sequence[Scored]) -> Scored | None:
    """The same model's result by the letters, if there is one."""
    every = [*untrained, *(one for run in runs for one in run.scored)]
    return next((one for one in every if one.path.parent == written.path.parent and one.task == task), None)


def compared(letters: Scored, written: Scored) -> tuple[Sequence[Cell], list[Sequence[Cell]]]:
    """The row of a model, and a row for each question where only one measure is right."""
    first = {key_of(sample, letters.task): sample for sample in letters.samples()}
    counts = {(one, other): 0 for one in (True, False) for other in (True, False)}
    differing: list[Sequence[Cell]] = []
    for sample in written.samples():
        other = first.get(key_of(sample, letters.task))
        if other is None:
            continue
        right = (is_right(other), is_right(sample))
        counts[right] += 1
        if right[0] != right[1]:
            differing.append(text_row(written.name, other, sample))
    result = written.result
    told = (result.get("unreadable"), result.get("cut_off"), result.get("mean_tokens"))
    row = (written.name, sum(counts.values()), counts[True, True], counts[True, False], counts[False, True])
    return (*row, counts[False, False], *told), differing


def key_of(sample: Record, task: str) -> tuple[Any, ...]:
    return (sample.get("task", task), sample["doc_id"])


def is_right(sample: Record) -> bool:
    """Whether a sample's answer is right; of several answers, whether most of them are."""
    value = sample.get("acc")
    return isinstance(value, int | float) and value > 0.5


def text_row(model: str, letters: Record, written: Record) -> Sequence[Cell]:
    """The question, and what the model wrote first."""
    texts, found = (written.get(name) for name in ("answers", "found"))
    text, read = (one[0] if isinstance(one, list) and one else None for one in (texts, found))
    cells = (written["prompt"], letters.get("gold"), letters.get("choice"), read or "none", text)
    return (model, *(cell if isinstance(cell, str) else None for cell in cells))
