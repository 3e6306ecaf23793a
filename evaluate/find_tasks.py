"""Tasks by name: a file in lm_eval/tasks/, or a benchmark's YAML alone."""

import difflib
import json
from pathlib import Path

from task_api import Task, load_task_file

from teacherlm import benchmarks
from teacherlm.errors import UserError

HERE = Path(__file__).resolve().parent
TASKS = HERE / "lm_eval" / "tasks"
DATASETS = HERE / "lm_eval" / "datasets"
TEMPLATE = "creak"
"""The task file that a benchmark without one of its own is scored by."""


def make_task(name: str, datasets: Path, num_fewshot: int, seed: int) -> Task:
    """The task of that name, with its test set loaded.

    Args:
        datasets: the folder of test sets; a task file's relative `lm_eval/datasets/X` means `datasets/X`.
        num_fewshot: examples before each question.
        seed: draws them.

    Raises:
        UserError: no such task (near names are listed), or its test set is missing or not what the task reads.
    """
    kind = task_class(name)
    path = Path(kind.DATASET_PATH or "")
    if path.parts[:2] == ("lm_eval", "datasets"):
        path = datasets / Path(*path.parts[2:])
        kind.DATASET_PATH = str(path)
        check_test_set(path, name)
    task = kind()
    task.set_config("task", name)
    task.set_config("num_fewshot", num_fewshot)
    task.set_fewshot_seed(seed)
    return task


def task_class(name: str) -> type[Task]:
    files = {path.stem: path for path in TASKS.glob("*.py") if path.stem != "new_task"}
    if name in files:
        classes = load_task_file(files[name])
        return classes[0]
    if name not in benchmarks.names():
        known = sorted({*files, *benchmarks.names()})
        near = difflib.get_close_matches(name, known, cutoff=0.5) or known
        raise UserError(f"no task {name!r}; there are: {', '.join(near)}")
    choices = len(benchmarks.load_benchmark(name).choices)
    base = load_task_file(files[TEMPLATE])[0]
    return type(name, (base,), {"DATASET_PATH": f"lm_eval/datasets/{name}", "CHOICES": choices})


def check_test_set(path: Path, name: str) -> None:
    """Raise a UserError unless `path` is a saved dataset whose samples have `question` and `answer`."""
    if not (path / "dataset_info.json").is_file():
        raise UserError(
            f"{path}: the test set of {name} is missing; make it with: "
            f"python3 enhance/data_prepare.py --benchmark {name} (or give its folder with --datasets)"
        )
    features = json.loads((path / "dataset_info.json").read_text(encoding="utf-8")).get("features") or {}
    for needed in ("question", "answer"):
        if needed not in features:
            raise UserError(f"{path}: its samples have no field {needed!r}; they have: {', '.join(features)}")
