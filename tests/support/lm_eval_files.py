"""Results of the real lm-eval on questions of ours, written by its own code; no hub is needed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from datasets import load_from_disk

TASK = {
    "task": "sample",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{question}} A: The answer is (",
    "doc_to_choice": ["A", "B"],
    "doc_to_target": "{{['(A)', '(B)'].index(answer)}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
"""A task of lm-eval that asks the questions of the benchmark `sample` with our prompt."""


def run_lm_eval(model: Path, tests: Path, output: Path, limit: int | None = None, **task: Any) -> Path:
    """Score a model with lm-eval, as `lm_eval --log_samples --output_path OUTPUT` does. Return the file of the samples.

    Args:
        tests: a test set of ours.
        task: fields of the task that are different.
    """
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    output.mkdir(parents=True)
    questions = output / "questions.jsonl"
    load_from_disk(str(tests)).to_json(questions)
    written = {**TASK, "dataset_kwargs": {"data_files": {"test": str(questions)}}, **task}
    (output / "task.yaml").write_text(yaml.safe_dump(written))
    tracker = EvaluationTracker(output_path=str(output / "results"))
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=[written["task"]],
        task_manager=TaskManager(include_path=str(output), include_defaults=False),
        device="cpu",
        limit=limit,
        log_samples=True,
        evaluation_tracker=tracker,
        bootstrap_iters=0,
    )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for name in found["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    [file] = (output / "results").glob("*/samples_*.jsonl")
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_samples(folder: Path, task: str, samples: Iterable[Mapping[str, Any]], time: str = "12-00-00.000001") -> Path:
    """Write samples into a file with the name that lm-eval gives."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_2026-01-31T{time}.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path
