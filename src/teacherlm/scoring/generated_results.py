"""The metrics of written answers.

acc        the share of right answers, over all answers to a question; for text it is the exact match
f1         for text: the F1 of an answer's words with those of a right answer
maj@N      the share of questions whose most frequent answer is right (self-consistency: arXiv 2203.11171)
pass@K     the probability that one of K answers is right (arXiv 2107.03374, equation 1)
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from teacherlm.catalog.answers import f1, read_answer, up_to_conclusion
from teacherlm.core.results import GENERATED
from teacherlm.scoring.evaluator import Z_95, wilson
from teacherlm.scoring.generated_answers import Answer
from teacherlm.scoring.generated_questions import Question


def scored(
    questions: Sequence[Question], answers: Sequence[Sequence[Answer]], number: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One result per task, and one record per question.

    Args:
        answers: for each question, its answers.
        number: number of answers per question.
    """
    records = [record_of(question, found, number) for question, found in zip(questions, answers, strict=True)]
    tasks = dict.fromkeys(question.task for question in questions)
    results = []
    for task in tasks:
        own = [record for record in records if record["task"] == task]
        results.append(result_of(task, own, number))
    return results, records


def record_of(question: Question, answers: Sequence[Answer], number: int) -> dict[str, Any]:
    """The record of a question: its answers, what was read in them, and the values of its metrics."""
    texts = [answer["text"] for answer in answers]
    found = [read_answer(text, question.asked) for text in answering_parts(question, texts)]
    right = [one in question.golds for one in found]
    record: dict[str, Any] = {
        "task": question.task,
        "doc_id": question.doc_id,
        "prompt": question.prompt,
        "gold": " | ".join(one.strip("()") if question.asked.choices else one for one in question.asked.golds),
        "answers": texts,
        "found": found,
        "tokens": [answer["tokens"] for answer in answers],
        "ended": [answer["ended"] for answer in answers],
    }
    if any("thinking" in answer for answer in answers):
        record["thinking"] = [answer.get("thinking", "") for answer in answers]
    if number == 1 and question.asked.kind == "letter" and found[0] is not None:
        record["choice"] = found[0]
    record["acc"] = float(np.mean(right))
    if question.asked.kind == "text":
        record["f1"] = float(np.mean([f1(one or "", question.golds) for one in found]))
    if number > 1:
        most = majority(found)
        record["tied"] = len(most) > 1
        record[f"maj@{number}"] = sum(one in question.golds for one in most) / max(1, len(most))
        for k in budgets(number):
            record[f"pass@{k}"] = pass_at(k, number, sum(right))
    return record


def answering_parts(question: Question, texts: Sequence[str]) -> Sequence[str]:
    """The parts of texts in which the answer is looked for: up to the first conclusion for a model that is not asked
    through a chat template, because it may not have learned to end its text after the answer. A chat model ends its
    turn, and its last conclusion counts. Rules of the benchmark's YAML get the whole text."""
    if question.messages or question.asked.rules:
        return texts
    return [up_to_conclusion(text, question.asked) for text in texts]


def majority(found: Sequence[str | None]) -> list[str]:
    """The most frequent answers; several if they are tied, none if no text has an answer. Texts without do not vote."""
    votes = Counter(one for one in found if one is not None)
    most = max(votes.values(), default=0)
    return [one for one, count in votes.items() if count == most]


def budgets(number: int) -> list[int]:
    """The K of pass@K: 2, 4, 8, ... below the number of answers, and this number."""
    return [k for k in (2**power for power in range(1, number.bit_length())) if k < number] + [number]


def pass_at(k: int, number: int, right: int) -> float:
    """The unbiased estimate of pass@k from `right` right ones of `number` answers: 1 - C(n - c, k) / C(n, k)."""
    return 1 - math.comb(number - right, k) / math.comb(number, k)


def result_of(task: str, records: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
    """The result of a task, in the form of evaluator.result_of. Each metric is a mean over questions."""
    kinds = ["acc", "f1", f"maj@{number}", *(f"pass@{k}" for k in budgets(number))]
    metrics = {name: mean_of([record[name] for record in records]) for name in kinds if name in records[0]}
    result = {"task": task, "metric": "acc", **metrics["acc"], "n": len(records), "is_mean": True}
    if number == 1:
        result["correct"] = int(sum(record["acc"] for record in records))
    texts = [(found, tokens, ended) for record in records for found, tokens, ended in answers_in(record)]
    counts = {
        "texts": len(texts),
        "unreadable": sum(found is None for found, _, _ in texts),
        "cut_off": sum(ended == "length" for _, _, ended in texts),
        "mean_tokens": round(float(np.mean([tokens for _, tokens, _ in texts])), 1),
    }
    if number > 1:
        counts["ties"] = float(np.mean([record["tied"] for record in records]))
    return {**result, **counts, "metrics": metrics}


def with_counts(
    result: dict[str, Any], records: Sequence[Mapping[str, Any]], number: int, groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The result of several tasks together, with the metrics and counts of their texts, also for each group.

    Args:
        groups: group -> the names of its tasks.
    """

    def of(tasks: Collection[str]) -> dict[str, Any]:
        found = result_of("", [record for record in records if record["task"] in tasks], number)
        return {name: value for name, value in found.items() if name not in ("task", "metric", "value", "n")}

    everything = of({record["task"] for record in records})
    return {
        **result,
        **everything,
        "groups": {name: {**result["groups"][name], **of(set(tasks))} for name, tasks in groups.items()},
        "tasks": [{**part, "task": part["task"] + GENERATED} for part in result["tasks"]],
    }


def answers_in(record: Mapping[str, Any]) -> list[tuple[str | None, int, str]]:
    return list(zip(record["found"], record["tokens"], record["ended"], strict=True))


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """The mean of the questions' values, its standard error and its 95 % interval.

    The interval is Wilson's (1927) if all values are 0 or 1, and otherwise the normal interval.
    """
    n, value = len(values), float(np.mean(values))
    stderr = float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else None
    if all(one in (0, 1) for one in values):
        interval = wilson(int(sum(values)), n)
    else:
        interval = None if stderr is None else [max(0.0, value - Z_95 * stderr), min(1.0, value + Z_95 * stderr)]
    return {"value": value, "stderr": stderr, "interval_95": interval}
