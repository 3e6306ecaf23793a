"""Our results and samples in the form of lm-eval's. lm-eval's result_schema.py describes the fields."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from teacherlm.catalog.prompts import split_question
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.records import Record
from teacherlm.core.results import GENERATED, NUMBER
from teacherlm.core.shapes import flaw_of_shape
from teacherlm.report.scored import Scored
from teacherlm.report.shown_manifests import checked_manifest

METRICS = {str: {"value": NUMBER, "stderr?": NUMBER}}
"""The shape of a result's `metrics`."""
HIGHER_IS_BETTER = ("acc", "acc_norm", "exact_match", "f1", "em", "mcc")
"""Metrics of which this is known. For others, lm-eval's tables have no arrow."""
UNKNOWN = "None"
"""What lm-eval writes for a value that is not known. The results do not say whether a choice is the greedy one."""


def manifest_of(scored: Scored) -> dict[str, Any]:
    """The manifest of a result; an empty one if it is missing.

    Raises:
        UserError: the file is damaged.
    """
    path = manifests.manifest_of(scored.path)
    try:
        return checked_manifest(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: this is not a manifest ({error}); score the model again") from error


def ended(scored: Scored) -> datetime:
    """The time at which a result was finished: that of its manifest, or else that of its file."""
    try:
        time = datetime.fromisoformat(manifest_of(scored)["finished"])
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (KeyError, ValueError, OverflowError):
        return datetime.fromtimestamp(int(scored.path.stat().st_mtime), UTC)


def model_of(scored: Scored) -> str:
    return str(scored.result.get("path") or scored.result.get("model") or scored.path.parent.name)


# ------------------------------------------------------------------------------------------------------------ samples


def samples_of(scored: Scored) -> dict[str, list[Record]]:
    """Task -> its samples in lm-eval's form. A result of several tasks together has samples of each.

    Raises:
        UserError: a sample cannot be read.
    """
    found: dict[str, list[Record]] = defaultdict(list)
    for record in scored.samples():
        task = part_name(scored, record.get("task"))
        found[task].append(sample_of(record, metrics_of(scored.result, task.removesuffix(GENERATED))))
    if scored.missing:
        raise UserError(scored.missing[0])
    return dict(found)


def part_name(scored: Scored, part: str | None) -> str:
    """The name of a part of a task. Parts of written answers get the ending that the whole task's name has.

    Args:
        part: the name in a record or in the result's `tasks`.
    """
    if part is None or not scored.result.get("tasks"):
        return scored.task
    return part + GENERATED * scored.task.endswith(GENERATED)


def metrics_of(result: Mapping[str, Any], task: str) -> list[str]:
    """The names of a task's metrics, in a result of this task or of several."""
    part = next((part for part in result.get("tasks", ()) if part["task"] == task), result)
    return list(named_metrics(part)) or [result["metric"]]


def named_metrics(part: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Metric -> its value and standard error, of a result or a part of it; empty if it has only its first metric."""
    found = part.get("metrics")
    return found if isinstance(found, dict) and flaw_of_shape(found, METRICS) is None else {}


def sample_of(record: Record, metrics: Sequence[str]) -> Record:
    """A sample in lm-eval's form. `doc` is made from the prompt: our samples do not have the dataset's fields."""
    prompt, gold = record["prompt"], str(record.get("gold", ""))
    likelihoods = record.get("loglikelihoods", {})
    choices = list(likelihoods)
    target = str(choices.index(gold)) if gold in choices else gold
    question, offered = split_question(prompt)
    doc = {"question": question, "choices": list(offered), "answer": gold}
    if likelihoods:
        requests: list[list[Any]] = [[prompt, choice] for choice in choices]
        answers: list[Any] = [[str(value), UNKNOWN] for value in likelihoods.values()]
        responses = [[answer] for answer in answers]
    else:  # one request, which may have several written answers
        texts = as_list(record.get("answers", []))
        requests, responses = [[prompt, {}]], [list(map(str, texts))]
        answers = list(map(str, as_list(record.get("found", texts))))
    values = {name: record[name] for name in metrics if isinstance(record.get(name), int | float)}
    return {
        "doc_id": record["doc_id"],
        "doc": doc,
        "target": target,
        "arguments": {
            f"gen_args_{number}": {f"arg_{place}": part for place, part in enumerate(request)}
            for number, request in enumerate(requests)
        },
        "resps": responses,
        "filtered_resps": answers,
        "filter": "none",
        "metrics": list(values),
        "doc_hash": hash_of(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": hash_of(prompt),
        "target_hash": hash_of(target),
        **values,
    }


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------ results


def results_of(
    scored: Sequence[Scored], exported: Mapping[Path, Mapping[str, Sequence[Record]]], time: datetime
) -> dict[str, Any]:
    """The content of results_TIME.json for the results of one model.

    Args:
        exported: file of a result -> task -> its samples, as `samples_of` makes them.
        time: when the evaluation ended.
    """
    first = scored[0].result
    manifest = manifest_of(scored[0])
    versions = manifest.get("versions", {})
    counts = [manifest_of(one).get("counts", {}) for one in scored]
    found: dict[str, Any] = {"results": {}, "groups": {}, "group_subtasks": {}, "configs": {}, "versions": {}}
    found |= {"n-shot": {}, "higher_is_better": {}, "n-samples": {}}
    for one in scored:
        add_result(found, one, exported[one.path])
    if not found["groups"]:
        del found["groups"]
    name = model_of(scored[0])
    tasks = {task: samples for one in scored for task, samples in exported[one.path].items()}
    config: dict[str, Any] = {"model": "teacherlm", "model_args": {"pretrained": name, "dtype": first.get("dtype")}}
    config |= {"model_dtype": first.get("dtype"), "batch_size": None, "batch_sizes": [], "device": None}
    config |= {"use_cache": None, "limit": first.get("limit"), "bootstrap_iters": None, "gen_kwargs": None}
    config |= {"random_seed": None, "numpy_seed": None, "torch_seed": None, "fewshot_seed": first.get("seed")}
    return found | {
        "config": config,
        "git_hash": versions.get("teacherlm"),
        "date": time.timestamp(),
        "transformers_version": versions.get("transformers"),
        "lm_eval_version": versions.get("lm_eval"),
        "upper_git_hash": None,
        "task_hashes": {task: hash_of_samples(samples) for task, samples in tasks.items()},
        "model_source": "teacherlm",
        "model_name": name,
        "model_name_sanitized": re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name),  # as lm-eval does
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(sum(count.get("seconds", 0) for count in counts)),
    }


def hash_of_samples(samples: Iterable[Record]) -> str:
    return hash_of("".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in samples))


def add_result(found: dict[str, Any], scored: Scored, exported: Mapping[str, Sequence[Record]]) -> None:
    """Add a result to the fields of results_TIME.json. A result of several tasks is a group of these tasks."""
    result, task = scored.result, scored.task
    parts = {part_name(scored, part["task"]): part for part in result.get("tasks", ())} or {task: result}
    for name, part in parts.items():
        samples = exported.get(name, ())
        metrics = metrics_of(result, name.removesuffix(GENERATED))
        add_task(found, name, {"metric": metrics[0], **part}, metrics)
        found["n-samples"][name] = {
            "original": None if result.get("limit") else len(samples),
            "effective": len(samples),
        }
        if result.get("num_fewshot") is not None:  # the default of a task of lm-eval is not known here
            found["n-shot"][name] = result["num_fewshot"]
        found["group_subtasks"][name] = []
        is_choice = all(len(one["arguments"]) > 1 for one in samples)
        config: dict[str, Any] = {"task": name, "output_type": "multiple_choice" if is_choice else "generate_until"}
        config |= {"num_fewshot": result.get("num_fewshot"), "metric_list": [{"metric": one} for one in metrics]}
        found["configs"][name] = config
    if task not in parts:
        groups = {task: result, **result.get("groups", {})}
        for name, part in groups.items():
            add_task(found, name, {"metric": result["metric"], **part}, [result["metric"]])
            found["groups"][name] = found["results"][name]
        found["group_subtasks"] |= {name: [] for name in groups} | {task: list(parts)}


def add_task(found: dict[str, Any], name: str, part: Mapping[str, Any], metrics: Sequence[str]) -> None:
    known = named_metrics(part) or {part["metric"]: {"value": part["value"], "stderr": part.get("stderr")}}
    values: dict[str, Any] = {"name": name, "alias": name, "sample_len": part.get("n")}
    for metric in metrics:
        one = known.get(metric, {})
        values[f"{metric},none"] = one.get("value")
        values[f"{metric}_stderr,none"] = "N/A" if one.get("stderr") is None else one["stderr"]
    found["results"][name] = values
    found["versions"][name] = "N/A"
    found["higher_is_better"][name] = {metric: True if metric in HIGHER_IS_BETTER else None for metric in metrics}
