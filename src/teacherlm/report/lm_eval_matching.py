"""Results of lm-eval beside ours, question by question.

A sample of lm-eval is paired with our answer to the question of the same number (`doc_id`), after a check that it is
the same question: the prompts are equal, or our prompt has the question of the sample's `doc`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from teacherlm.core.errors import UserError
from teacherlm.core.records import Record
from teacherlm.core.results import GENERATED
from teacherlm.core.terminal import shown
from teacherlm.report.lm_eval_samples import Sample, Samples, Source
from teacherlm.report.scored import Scored, say
from teacherlm.report.significance import wilson


@dataclass(frozen=True)
class OfLmEval(Scored):
    """A result of lm-eval in the form of ours. Its samples are records with our prompts and numbers of questions."""

    records: Sequence[Record] = field(default=(), repr=False, compare=False)

    def samples(self) -> Iterator[Record]:
        return iter(self.records)


class Asked(NamedTuple):
    """How our results ask a question: the record's task, the prompt, and the file; and whether they offer choices."""

    task: str | None
    prompt: str
    path: Path
    is_choice: bool


Questions = dict[tuple[str, Any], list[Asked]]
"""(task, doc_id) -> the different ways in which our results ask the question."""


def with_ours(sources: Sequence[Source], ours: Sequence[Scored], missing: list[str]) -> list[Scored]:
    """The results of lm-eval that stand beside ours: on each task of ours, each source that has it.

    Without results of ours, the first source is in their place, so that two models of lm-eval can be compared.

    Args:
        missing: the list to which sentences are added about tasks and questions that only one side has.

    Raises:
        UserError: a question is not the same as ours, or there is nothing to compare.
    """
    if not ours:
        ours = [as_result(sources[0].name, one) for one in sources[0].tasks.values()]
    by_task: dict[str, list[Scored]] = {}
    for scored in ours:
        by_task.setdefault(scored.task, []).append(scored)
    asked = {task: questions_of(task, results) for task, results in by_task.items()}
    found: list[Scored] = []
    for source in sources:
        used: set[str] = set()
        for task, results in by_task.items():
            if parts := parts_for(source, asked[task], is_only=len(by_task) == 1):
                used |= {part.task for part in parts}
                found.append(match(source, task, results[0].result["metric"], parts, asked[task], missing))
        if not used:
            raise UserError(
                f"{source.place}: lm-eval has scored {', '.join(source.tasks)}, and the results to compare with are of "
                f"{', '.join(by_task)}; give results of the same task, with answers that both choose or both write"
            )
        for name in sorted(source.tasks.keys() - used):
            say(missing, f"lm-eval: {source.name} has the task {name}, on which no other result is compared")
    return found


def parts_for(source: Source, asked: Questions, is_only: bool) -> list[Samples]:
    """The samples of a source that belong to a task of ours: those of its name, or of the names of its parts.

    Chosen answers are not compared with written ones.

    Args:
        is_only: whether ours have no other task. Then the only task of a source belongs to it, whatever its name is.
    """
    names = [ending for name in dict.fromkeys(name for name, _ in asked) for ending in (name, name + GENERATED)]
    named = [source.tasks[name] for name in names if name in source.tasks]
    if not named and is_only and len(source.tasks) == 1:
        named = list(source.tasks.values())
    kinds = {one.is_choice for ways in asked.values() for one in ways}
    return [part for part in named if part.is_choice in kinds]


def metric_in(part: Samples, metric: str, task: str) -> str:
    """The metric of lm-eval's samples that is the same as ours. For written answers, lm-eval calls it exact_match.

    Raises:
        UserError: the samples do not have it.
    """
    for name in (metric, "exact_match") if metric == "acc" and not part.is_choice else (metric,):
        if name in part.metrics:
            return name
    raise UserError(
        f"{part.path}: the metric {metric} of {task} was expected in every sample, found "
        f"{', '.join(part.metrics) or 'no metric that all have'}; score the task with {metric}"
    )


def questions_of(task: str, results: Iterable[Scored]) -> Questions:
    found: Questions = {}
    for scored in results:
        for record in scored.samples():
            asked = Asked(record.get("task"), record["prompt"], scored.path, "answers" not in record)
            known = found.setdefault((record.get("task") or task, record["doc_id"]), [])
            if all(asked.prompt != one.prompt for one in known):
                known.append(asked)
    return found


def match(
    source: Source, task: str, metric: str, parts: Sequence[Samples], asked: Questions, missing: list[str]
) -> Scored:
    """The result of a source on a task, with our prompts where the questions are the same.

    Raises:
        UserError: a sample with the number of a question of ours is about another question, or no number is ours.
    """
    names = {name for name, _ in asked}
    records, total, reworded = [], 0, 0
    for part in parts:
        name = part.task.removesuffix(GENERATED)
        name = name if name in names else next(iter(names))  # the only one, under another name
        theirs = metric_in(part, metric, task)
        for sample in part.samples:
            total += 1
            if known := asked.get((name, sample.doc_id)):
                one = same_question(sample, known, part.path)
                reworded += one.prompt != sample.prompt
                own = {} if one.task is None else {"task": one.task}
                records.append({**own, "doc_id": sample.doc_id, "prompt": one.prompt, metric: sample.metrics[theirs]})
    if not records:
        raise UserError(
            f"{parts[0].path}: no doc_id is that of a question of {task}; give results of the same questions"
        )
    if len(records) < total:
        say(
            missing, f"lm-eval: {source.name} has {total} questions of {task}, and {len(records)} of them are also ours"
        )
    if reworded:
        say(
            missing, f"lm-eval: {source.name} asked {reworded} of the questions of {task} with another prompt than ours"
        )
    return scored_as(source.name, parts[0].path, task, metric, records)


def same_question(sample: Sample, known: Sequence[Asked], path: Path) -> Asked:
    """How our results ask the sample's question.

    Raises:
        UserError: they ask another question with the same number.
    """
    for one in known:
        if one.prompt == sample.prompt:
            return one
    for one in known:
        if has_question(one.prompt, sample):
            return one
    ours = known[0]
    start = max(0, next((n for n, (a, b) in enumerate(zip(sample.prompt, ours.prompt)) if a != b), 0) - 20)
    raise UserError(
        f"{path}, line {sample.line}: doc_id {sample.doc_id} is another question than in {ours.path}: "
        f"{shown(sample.prompt[start:])} here, {shown(ours.prompt[start:])} there; compare results of the same "
        "questions"
    )


def has_question(prompt: str, sample: Sample) -> bool:
    """Whether a prompt has the words of a sample's question and of its choices.

    Questions of fewer than three words could be anywhere.
    """
    words, text = sample.question.split(), f" {' '.join(prompt.split())} "
    is_there = len(words) >= 3 and f" {' '.join(words)} " in text
    return is_there and all(" ".join(choice.split()) in text for choice in sample.choices)


def as_result(name: str, samples: Samples) -> Scored:
    """The samples of lm-eval as a result of ours, of accuracy if they have it, or else of their first metric.

    Raises:
        UserError: no metric is in every sample.
    """
    if not samples.metrics:
        raise UserError(f"{samples.path}: the samples have no metric in common; score the task again")
    metric = "acc" if "acc" in samples.metrics else samples.metrics[0]
    kind: Record = {} if samples.is_choice else {"answers": []}
    records = [
        {"doc_id": one.doc_id, "prompt": one.prompt, metric: one.metrics[metric], **kind} for one in samples.samples
    ]
    return scored_as(name, samples.path, samples.task, metric, records)


def scored_as(name: str, path: Path, task: str, metric: str, records: Sequence[Record]) -> Scored:
    values = [record[metric] for record in records]
    is_accuracy = all(value in (0, 1) for value in values)
    interval = wilson(int(sum(values)), len(values)) if is_accuracy else None
    result = {"task": task, "metric": metric, "value": sum(values) / len(values), "n": len(values)}
    return OfLmEval(name, 0, path, {**result, "interval_95": interval}, [], records)
