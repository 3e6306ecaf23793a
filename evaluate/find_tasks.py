"""Tasks by name: a file in lm_eval/tasks/, a benchmark's YAML alone, a part or group of a benchmark, lm-eval's own."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from task_api import Task, load_task_file

from teacherlm import benchmarks
from teacherlm.benchmarks import Benchmark
from teacherlm.errors import UserError, reason, shown
from teacherlm.files import require_hub_cache
from teacherlm.prompts import LETTERS

HERE = Path(__file__).resolve().parent
TASKS = HERE / "lm_eval" / "tasks"
DATASETS = HERE / "lm_eval" / "datasets"
NEW_TASK = "new_task"
"""The file that users copy."""
TEMPLATE = "creak"
"""The task file that a benchmark without one of its own is scored by."""


def make_tasks(name: str, folder: Path, num_fewshot: int | None, seed: int, include: Path | None) -> dict[str, Any]:
    """The tasks of that name, one or many (`mmlu`, `mmlu_stem`), with their test sets loaded.

    Args:
        folder: of the test sets; a task file's relative `lm_eval/datasets/X` means `folder/X`.
        num_fewshot: examples before each question; None: none, or what lm-eval's own task has.
        seed: draws them; with 0 it is the first ones of those there are.
        include: a folder with more task files.

    Raises:
        UserError: no such task (near names are listed), or its test set is missing or not what the task reads.
    """
    files = task_files(include)
    kinds = task_classes(name, folder, files)
    if kinds is None:
        return library_tasks(name, num_fewshot, seed, [*files, *benchmarks.names()])
    tasks = {}
    checked = set()
    for title, kind in kinds.items():
        path = Path(kind.DATASET_PATH or "")
        if path.parts[:2] == ("lm_eval", "datasets"):
            path = folder / Path(*path.parts[2:])
            kind.DATASET_PATH = str(path)
            if path not in checked:
                load_test_set(path, name, getattr(kind, "CHOICES", None))
            checked.add(path)
        kind.SEED = seed
        task = kind()
        task.set_config("task", title)
        task.set_config("num_fewshot", num_fewshot or 0)
        task.set_fewshot_seed(seed)
        check_fewshot(task, title, num_fewshot or 0)
        tasks[title] = task
    return tasks


def task_files(include: Path | None) -> dict[str, Path]:
    """Task files by name; those of `include` come before this project's."""
    folders = [TASKS, *([include] if include else [])]
    return {path.stem: path for folder in folders for path in folder.glob("*.py") if path.stem != NEW_TASK}


def task_classes(name: str, folder: Path, files: Mapping[str, Path]) -> dict[str, type[Task]] | None:
    """The class of each task of a name of this project; None for another name."""
    if name in files:
        return {name: load_task_file(files[name])[0]}
    title, part = benchmarks.benchmark_and_part(name) or (None, None)
    if title is None:
        return None
    benchmark = benchmarks.load_benchmark(title)
    base = load_task_file(TASKS / f"{TEMPLATE}.py")[0]
    if benchmark.file_field is None:
        return {name: multiple_choice(base, benchmark)} if part is None else None
    return {
        f"{title}_{value}": multiple_choice(base, benchmark, value) for value in parts_of(benchmark, folder, part)
    } or None


def multiple_choice(base: type[Task], benchmark: Benchmark, value: str | None = None) -> type[Task]:
    """The task of a benchmark's YAML, or of the part of it whose field `file_field` has that value."""
    part = None if value is None else (benchmark.file_field, value)
    path = f"lm_eval/datasets/{benchmark.name}"
    return type(benchmark.name, (base,), {"DATASET_PATH": path, "CHOICES": len(benchmark.choices), "PART": part})


def parts_of(benchmark: Benchmark, folder: Path, wanted: str | None) -> list[str]:
    """The parts of a benchmark (`anatomy` of MMLU): all, those of a group, or one."""
    tests = load_test_set(folder / benchmark.name, benchmark.name, len(benchmark.choices))
    parts = sorted(set(tests[benchmark.file_field]))
    return parts if wanted is None else [part for part in parts if part in benchmark.groups.get(wanted, [wanted])]


def categories(name: str, tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    """Group of a benchmark -> those of the tasks that are in it; empty for what has no groups."""
    title, _ = benchmarks.benchmark_and_part(name) or (None, None)
    groups = benchmarks.load_benchmark(title).groups if title else {}
    found = {
        group: [f"{title}_{value}" for value in values if f"{title}_{value}" in tasks]
        for group, values in groups.items()
    }
    return {group: names for group, names in found.items() if names}


def library_tasks(name: str, num_fewshot: int | None, seed: int, known: list[str]) -> dict[str, Any]:
    """lm-eval's own tasks of a name, whose data comes from the hub.

    Args:
        known: names of this project, for the message that there is no such task.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if name not in manager.all_tasks:
        own = sorted(set(known))
        near = difflib.get_close_matches(name, [*own, *manager.all_tasks], cutoff=0.6) or own
        raise UserError(f"no task {name!r}; there are: {', '.join(near)}")
    require_hub_cache()
    try:
        tasks = manager.load([name])["tasks"]
    except Exception as error:  # of the hub, of the network, of the task's own code
        raise UserError(f"lm-eval's task {name} cannot be loaded: {reason(error)}") from error
    for task in tasks.values():
        task.set_fewshot_seed(seed)
        if num_fewshot is not None:
            task.set_config("num_fewshot", num_fewshot)
    return tasks


def load_test_set(path: Path, name: str, choices: int | None) -> datasets.Dataset:
    """The samples in a folder.

    Args:
        choices: how many letters an answer may be; None: it may be anything.

    Raises:
        UserError: there are none, without `question` or `answer`, or with an answer that is none of the letters.
    """
    if not (path / "dataset_info.json").is_file():
        raise UserError(
            f"{path}: the test set of {name} is missing; make it with: "
            f"python3 enhance/data_prepare.py --benchmark {name} (or give its folder with --datasets)"
        )
    features = json.loads((path / "dataset_info.json").read_text(encoding="utf-8")).get("features") or {}
    for needed in ("question", "answer"):
        if needed not in features:
            raise UserError(f"{path}: its samples have no field {needed!r}; they have: {', '.join(features)}")
    try:
        samples = datasets.load_from_disk(str(path))
        answers = list(samples["answer"])
    except Exception as error:  # the library's own; of a folder without samples an IndexError
        raise UserError(f"{path}: there are no samples in it, or they cannot be read ({reason(error)})") from error
    if not answers:
        raise UserError(f"{path}: there are no samples in it")
    accepted = {f"({letter})" for letter in LETTERS[: choices or 0]}
    for number, answer in enumerate(answers):
        if choices is not None and answer not in accepted:
            expected = f"(A) to ({LETTERS[choices - 1]})"
            raise UserError(f"{path}, sample {number}: the answer is {shown(answer)}; one of {expected} was expected")
    return samples


def check_fewshot(task: Task, name: str, count: int) -> None:
    if not count or not task.has_training_docs():
        return
    pool = len(list(task.training_docs()))
    if pool < count:
        raise UserError(f"--num_fewshot {count}: {name} has {pool} examples")
