"""Score tasks with lm-eval's evaluator: metrics, standard errors, and the model's answer to each sample."""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.task import ConfigurableTask
from scipy.stats import binomtest, norm

from teacherlm.core.errors import UserError
from teacherlm.core.terminal import shown
from teacherlm.scoring.language_model import LanguageModel
from teacherlm.scoring.task_api import Task
from teacherlm.scoring.task_classes import task_errors

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its warnings are about settings that are not used here
os.environ["DISABLE_MULTIPROC"] = "1"  # a bootstrap of 1,000 resamples gains nothing from more processes

Z_95 = norm.ppf(0.975)
BOOTSTRAPS = 1000
"""Number of resamples for the standard error of a metric that is not a mean. The library's default of 100,000 takes
minutes for an F1."""


def score(
    model: LanguageModel, tasks: Mapping[str, Any], limit: int | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score tasks, and return one result per task (metrics, errors, counts) and one record per sample.

    Raises:
        UserError: the code of a task file fails or returns no metrics.
    """
    for name, task in tasks.items():
        if isinstance(task, ConfigurableTask) and task.OUTPUT_TYPE == "multiple_choice":
            require_golds(task, name, limit)
    with task_errors(f"scoring {', '.join(tasks)[:60]}"):
        scored = evaluator.evaluate(
            model,
            {"tasks": dict(tasks), "groups": {}},
            limit=limit,
            bootstrap_iters=BOOTSTRAPS,
            apply_chat_template=model.chat is not None,  # for the library's tasks; see chat_requests.py for the others
            fewshot_as_multiturn=model.as_turns,
        )
    results, records = [], []
    for name, task in tasks.items():
        samples = scored["samples"][name]
        results.append(result_of(name, scored["results"][name], samples, metrics_of(task, name, samples)))
        debias, plain_prompts = getattr(task, "debias", None), getattr(task, "plain_prompts", {})
        records += [{"task": name, **sample_record(sample, debias, plain_prompts)} for sample in samples]
    return results, records


def require_golds(task: ConfigurableTask, name: str, limit: int | None) -> None:
    """Refuse a sample of a library task if its gold answer is not one of its choices. The library would count it as
    wrong.

    Raises:
        UserError: the message names the first such sample.
    """
    if callable(task.config.process_results):  # the task judges the answers itself
        return
    for number, doc in task.doc_iterator(limit=limit):
        choices = task.doc_to_choice(doc)
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        for one in gold if isinstance(gold, list) else [gold]:
            if one not in (choices if isinstance(one, str) else range(len(choices))):
                raise UserError(
                    f"the task {name}, sample {number}: the right choice is {shown(one)}; one of the {len(choices)} "
                    "choices was expected, or its number from 0"
                )


def metrics_of(task: Any, name: str, samples: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the metrics that a task's samples have. Accuracy comes first if it is one of them.

    Raises:
        UserError: there is no metric, or the task does not say how to aggregate one.
    """
    found = {metric for sample in samples for metric in sample["metrics"]}
    names = [metric for metric in task.aggregation() if metric in found or not isinstance(task, Task)]
    if isinstance(task, Task) and (found != set(names) or not names):
        given = ", ".join(sorted(found - set(names))) or "no metric"
        raise UserError(
            f"the task {name}: process_results() returns {given}, and aggregation() has "
            f"{', '.join(task.aggregation()) or 'none'}; aggregation() must have a function for each metric"
        )
    return sorted(names, key=lambda metric: metric != "acc")


def result_of(name: str, metrics: Mapping[str, Any], samples: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """The result of a task. `metric` is the first of `names`, and `metrics` has all of them.

    `is_mean` says whether the first metric is the mean of the samples' values. The 95 % interval of an accuracy is
    Wilson's (1927), which is also valid for few samples and for accuracies near 0 and 1. The interval of another mean
    is the normal interval from its standard error.
    """
    found = {metric: number(metrics, metric) for metric in names}
    errors = {metric: number(metrics, f"{metric}_stderr") for metric in names}
    first = names[0]
    values = [plain(sample.get(first)) for sample in samples]
    result = {
        "task": name,
        "metric": first,
        "value": found[first],
        "stderr": errors[first] if len(samples) > 1 else None,
        "interval_95": None,
        "n": len(samples),
    }
    result["is_mean"] = None not in (*values, found[first]) and math.isclose(
        found[first], np.mean(values), abs_tol=1e-9
    )
    if all(value in (0, 1) for value in values) and result["is_mean"]:
        result["correct"] = int(sum(values))
        result["interval_95"] = wilson(result["correct"], len(samples))
    elif result["stderr"] is not None and found[first] is not None:
        result["interval_95"] = [found[first] + sign * Z_95 * errors[first] for sign in (-1, 1)]
    return {**result, "metrics": {metric: {"value": found[metric], "stderr": errors[metric]} for metric in names}}


def gold_of(sample: dict[str, Any]) -> str:
    """The letter in a sample's field `answer`, or the task's target if there is no such field."""
    doc = sample["doc"]
    answer = doc.get("answer", sample["target"]) if isinstance(doc, Mapping) else sample["target"]
    return str(answer).strip("() ")


def combine(name: str, results: list[dict[str, Any]], groups: Mapping[str, list[str]]) -> dict[str, Any]:
    """The combined result of several tasks.

    `value` is the share of all questions with a correct answer (the micro-average, as in the MMLU paper), and `macro`
    is the mean over the tasks. `groups` has both for each group, and `tasks` has the results of the single tasks. Tasks
    with different metrics have neither average. Metrics that are not means over samples (F1, perplexity) have no
    micro-average.
    """
    together = average(results)
    by_name = {result["task"]: result for result in results}
    of_groups = {group: average([by_name[task] for task in tasks]) for group, tasks in groups.items()}
    return {"task": name, "metric": results[0]["metric"], **together, "groups": of_groups, "tasks": results}


def average(results: list[dict[str, Any]]) -> dict[str, Any]:
    n = sum(result["n"] for result in results)
    known = len({result["metric"] for result in results}) == 1 and all(
        result["value"] is not None for result in results
    )
    pooled = known and all(result["is_mean"] for result in results)
    found: dict[str, Any] = {
        "value": sum(result["value"] * result["n"] for result in results) / n if pooled else None,
        "macro": sum(result["value"] for result in results) / len(results) if known else None,
        "stderr": None,
        "interval_95": None,
        "n": n,
    }
    if pooled and all("correct" in result for result in results):
        found["correct"] = sum(result["correct"] for result in results)
        found["interval_95"] = wilson(found["correct"], n)
        found["stderr"] = math.sqrt(found["value"] * (1 - found["value"]) / (n - 1)) if n > 1 else None
    return found


def wilson(correct: int, n: int) -> list[float]:
    interval = binomtest(correct, n).proportion_ci(method="wilson")
    return [interval.low, interval.high]


def number(metrics: Mapping[str, Any], name: str) -> float | None:
    """A metric by its name. The library adds a comma and the name of a filter, which are ignored. None if missing."""
    values = [plain(value) for key, value in metrics.items() if key.rpartition(",")[0] == name]
    return float(values[0]) if values and values[0] is not None and math.isfinite(values[0]) else None


def plain(value: Any) -> int | float | bool | None:
    """A number of Python, numpy or torch as a Python number; None for anything else."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        with contextlib.suppress(ValueError, RuntimeError):  # it holds several numbers
            value = value.item()
    return value if isinstance(value, int | float) else None


def sample_record(
    sample: dict[str, Any],
    debias: Callable[[list[float]], list[float]] | None,
    plain_prompts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The record of a sample: the prompt, the gold answer, the model's answer, and the metrics.

    If the answers are log-likelihoods of choices, the record has them and the choice with the highest. Otherwise it has
    the answers to all requests. If a question was asked with its choices in several orders, the log-likelihoods are the
    debiased ones, and `orders` has those of all orders. Where a chat student got a conversation, the record has it too.

    Args:
        plain_prompts: conversation -> the prompt as a plain text.
    """
    requests, answers = sample["arguments"], sample["filtered_resps"]
    record = {
        "doc_id": sample["doc_id"],
        "prompt": requests[0][0],
        "gold": gold_of(sample),
    }
    if (plain_prompt := (plain_prompts or {}).get(record["prompt"])) is not None:
        record |= {"prompt": plain_prompt, "conversation": record["prompt"]}
    numbers = [answer[0] if isinstance(answer, tuple | list) else answer for answer in answers]
    if debias:
        record["orders"] = numbers
        numbers = debias(numbers)
        requests = requests[: len(numbers)]
    choices = [request[1] for request in requests if len(request) > 1 and isinstance(request[1], str)]
    if len(choices) == len(numbers) == len(set(choices)) and all(isinstance(value, float) for value in numbers):
        likelihoods = dict(zip(choices, numbers))
        record |= {"choice": max(likelihoods, key=likelihoods.get), "loglikelihoods": likelihoods}
    else:
        record["answers"] = numbers
    values = {metric: plain(sample[metric]) for metric in sample["metrics"]}
    return record | {metric: value for metric, value in values.items() if value is not None}
