"""Tasks of lm-eval 0.3, scored."""

import json
from collections.abc import Callable
from pathlib import Path

from support.files import read_lines
from support.programs import ROOT

OLD_TASKS = ROOT / "tests" / "support" / "old_tasks"


def score(inside: Callable, model: Path, task: str, output: Path, *more: object) -> tuple[dict, list[dict]]:
    words = ["--model_args", f"pretrained={model}", "--tasks", task, "--output_path", output, *more]
    result = inside("evaluate", *words, "--include_path", OLD_TASKS)
    assert result.returncode == 0, result.stderr
    folder = output / model.name
    return json.loads((folder / f"{task}.json").read_text()), read_lines(folder / f"{task}_samples.jsonl")
