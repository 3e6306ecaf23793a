"""Find tasks by name: in task files, in benchmarks without a task file, and in the lm-eval library.

A name is searched for in this order, and the first place that has it wins:
1. `--include_path`: names of files, then of the tasks inside them;
2. `lm_eval/tasks/`: names of files;
3. `benchmarks/`: names of YAML files;
4. `lm_eval/tasks/`: names of the tasks inside the files;
5. `benchmarks/`: groups and parts (`mmlu_stem`, `mmlu_anatomy`);
6. the tasks of the lm-eval library.
"""

import fnmatch
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from teacherlm.catalog import benchmarks
from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.catalog.prompts import full_stop, open_context
from teacherlm.catalog.test_sets import load_test_set
from teacherlm.core.errors import UserError, reason
from teacherlm.core.names import meant
from teacherlm.core.places import require_hub_cache
from teacherlm.core.terminal import plural
from teacherlm.scoring import task_files
from teacherlm.scoring.task_api import Task, file_of
from teacherlm.scoring.task_classes import Kind, read_task_file, require_methods, require_no_arguments, task_errors


def make_tasks(name: str, folder: Path, num_fewshot: int | None, seed: int, include: Path | None) -> dict[str, Any]:
    """The tasks of a name, one or many (`mmlu`, `mmlu_stem`), with their test sets loaded.

    Args:
        folder: the folder of the test sets; `lm_eval/datasets/X` in a task file means `folder/X`.
        num_fewshot: number of examples before each question; None means none, or the default of a library task.
        seed: seed for drawing the examples; 0 takes the first examples.
        include: a folder with more task files, or None.

    Raises:
        UserError: there is no such task (the message lists similar names), its test set is missing or does not fit the
            task, or its code fails.
    """
    kinds = find_classes(name, folder, include)
    if kinds is None:
        return library_tasks(name, num_fewshot, seed, include)
    return {title: make_task(kind, title, folder, num_fewshot or 0, seed) for title, kind in kinds.items()}


def make_task(kind: Kind, title: str, folder: Path, num_fewshot: int, seed: int) -> Task:
    """A task with its samples. An error in the task's code becomes a UserError that names the file and the line."""
    file = file_of(kind)
    require_methods(kind, file)
    require_no_arguments(kind, file)
    with task_errors(f"the task {title}{missing_test_set(kind, folder)}", always=file):
        task = type(kind.__name__, (kind,), {"TEST_SETS": folder, "__module__": kind.__module__})()
        task.SEED = seed
        task.set_config("task", title)
        task.set_config("num_fewshot", num_fewshot)
        task.set_fewshot_seed(seed)
        check_fewshot(task, title, num_fewshot)
        len(task.eval_docs)  # this finds a task without samples before the model is loaded
    return task


def missing_test_set(kind: Kind, folder: Path) -> str:
    """The addition to an error message if the test set that DATASET_PATH names does not exist; otherwise ""."""
    written = str(kind.DATASET_PATH or "")
    path = task_files.in_folder(written, folder)
    if path == written or Path(path).exists():
        return ""
    name = Path(path).name
    made = f", or make it: python3 enhance/data_prepare.py --benchmark {name}" if name in benchmarks.names() else ""
    return f" (its test set is missing: there is no {path}, which DATASET_PATH names; put it there{made})"


def find_classes(name: str, folder: Path, include: Path | None) -> dict[str, Kind] | None:
    """The task classes of a name in this project, by the name of each task; None if the project has no such name."""
    for place in task_files.task_folders(include):
        if path := task_files.task_files(place).get(name):
            return read_task_file(path).named(name)
        if place == include and (kind := inside(place, name)):
            return {name: kind}
    title, part = benchmarks.benchmark_and_part(name) or (None, None)
    if title != name and (kind := inside(task_files.TASKS, name)):
        return {name: kind}
    return benchmark_classes(title, part, folder) if title else None


def inside(folder: Path, name: str) -> Kind | None:
    """The task of this name in one of the files of a folder.

    Raises:
        UserError: several tasks have the name.
    """
    found = {kind: tasks.path for tasks in read_folder(folder) for kind in tasks.names.get(name, ())}
    if len(found) > 1:
        files = " and ".join(sorted({str(path) for path in found.values()}))
        raise UserError(f"{name} is the name of {len(found)} tasks in {files}; use another name of the task you want")
    return next(iter(found), None)


def read_folder(folder: Path) -> Iterator[Any]:
    """The tasks of each task file in a folder. Files that never mention lm_eval are other scripts, and are skipped."""
    for path in (folder / f"{task_files.REGISTRY}.py", *task_files.task_files(folder).values()):
        if path.is_file() and any(b"lm_eval" in file.read_bytes() for file in task_files.sources(path)):
            yield read_task_file(path)


def expand(names: Sequence[str], folder: Path, include: Path | None) -> list[str]:
    """The names of tasks, with each pattern (`mmlu_*`) replaced by the single tasks that match it, but not by groups.

    Raises:
        UserError: a pattern matches nothing.
    """
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(matches(name, folder, include) if task_files.is_pattern(name) else [name])
    return list(found)


def matches(pattern: str, folder: Path, include: Path | None) -> list[str]:
    def accepts(name: str) -> bool:
        return name == pattern or fnmatch.fnmatchcase(name, pattern)

    found: dict[Kind | str, str] = {}
    for place in task_files.task_folders(include):
        for tasks in read_folder(place):
            for name, kind in tasks.matching(accepts).items():
                found.setdefault(kind, name)
    names = {*found.values(), *filter(accepts, benchmark_tasks(pattern, folder))}
    if names:
        return sorted(names)
    names = {*filter(accepts, library().all_subtasks)}
    if not names:
        raise UserError(f"no task matches {pattern!r}; there are: {', '.join(own_names(include))}")
    return sorted(names)


def benchmark_tasks(pattern: str, folder: Path) -> Iterator[str]:
    """The names of the single tasks of all benchmarks. The test set of a benchmark with parts says which parts it has.

    A test set is read only if the pattern may match one of its parts, so that `cre*` does not need MMLU.
    """
    begin = re.split(r"[*?[]", pattern)[0]
    for title in benchmarks.names():
        benchmark = benchmarks.load_benchmark(title)
        if benchmark.file_field is None:
            yield title
        elif f"{title}_".startswith(begin) or begin.startswith(f"{title}_"):
            yield from (f"{title}_{part}" for part in parts_of(benchmark, folder, None))


def own_names(include: Path | None) -> list[str]:
    """The names of task files and benchmarks, for messages."""
    files = [name for place in task_files.task_folders(include) for name in task_files.task_files(place)]
    return sorted({*files, *benchmarks.names()})


def benchmark_classes(title: str, part: str | None, folder: Path) -> dict[str, Kind] | None:
    """The tasks of a benchmark without a task file, or of a group or part of it; None if it has no such part."""
    benchmark = benchmarks.load_benchmark(title)
    [base] = read_task_file(task_files.TASKS / f"{task_files.TEMPLATE}.py").tasks.values()
    if benchmark.file_field is None:
        return {title: task_of(base, benchmark)} if part is None else None
    parts = parts_of(benchmark, folder, part)
    return {f"{title}_{value}": task_of(base, benchmark, value) for value in parts} or None


def open_text(task: Task, doc: Mapping[str, Any]) -> str:
    return open_context(doc["question"], doc.get("preamble") or "")


def open_target(task: Task, doc: Mapping[str, Any]) -> str:
    return f" {full_stop(doc['answer'])}"


WITHOUT_CHOICES = {"doc_to_text": open_text, "doc_to_target": open_target}
"""The methods of a task whose samples have no choices."""


def task_of(base: Kind, benchmark: Benchmark, value: str | None = None) -> Kind:
    """The task of a benchmark's YAML, or of the part whose samples have this value in the field `file_field`."""
    part = None if value is None else (benchmark.file_field, value)
    changed = {
        "BENCHMARK": benchmark.name,
        "DATASET_PATH": f"{task_files.OLD_DATASETS}/{benchmark.name}",
        "CHOICES": len(benchmark.choices) or None,
        "PART": part,
        **(WITHOUT_CHOICES if benchmark.is_open else {}),
    }
    return type(benchmark.name, (base,), {**changed, "__module__": base.__module__})


def benchmark_of(kind: Kind) -> Benchmark | None:
    """The benchmark whose YAML a task has; None for a task file that is not that of a benchmark. The name of a task
    alone does not say so: `gsm8k_easy.py` has questions of its own."""
    name = getattr(kind, "BENCHMARK", None)
    file = Path(file_of(kind))
    if name is None and file.parent == task_files.TASKS and file.stem in benchmarks.names():
        name = file.stem
    return None if name is None else benchmarks.load_benchmark(name)


def parts_of(benchmark: Benchmark, folder: Path, wanted: str | None) -> list[str]:
    """The parts of a benchmark (such as MMLU's `anatomy`): all of them, those of a group, or one."""
    tests = load_test_set(folder / benchmark.name, benchmark.name, len(benchmark.choices) or None)
    parts = sorted(set(tests[benchmark.file_field]))
    return parts if wanted is None else [part for part in parts if part in benchmark.groups.get(wanted, [wanted])]


def categories(name: str, tasks: Mapping[str, Any]) -> dict[str, list[str]]:
    """Maps each group of a benchmark to those of the tasks that are in it; empty if there are no groups."""
    title, _ = benchmarks.benchmark_and_part(name) or (None, None)
    groups = benchmarks.load_benchmark(title).groups if title else {}
    found = {
        group: [f"{title}_{value}" for value in values if f"{title}_{value}" in tasks]
        for group, values in groups.items()
    }
    return {group: names for group, names in found.items() if names}


def library_tasks(name: str, num_fewshot: int | None, seed: int, include: Path | None) -> dict[str, Any]:
    """The tasks of a name in the lm-eval library. Their data comes from the hub."""
    if name == task_files.NEW_TASK:
        raise UserError(
            f"{name}.py is a template; copy it (cp lm_eval/tasks/{name}.py lm_eval/tasks/NAME.py), edit the copy, and "
            "score it with --tasks NAME"
        )
    manager = library()
    if name not in manager.all_tasks:
        raise UserError(f"no task {name!r}; {meant(name, own_names(include), manager.all_tasks)}")
    require_hub_cache()
    try:
        tasks = manager.load([name])["tasks"]
    except Exception as error:  # from the hub, the network or the task's code
        raise UserError(f"the task {name} of lm-eval cannot be loaded: {reason(error)}") from error
    for task in tasks.values():
        task.set_fewshot_seed(seed)
        if num_fewshot is not None:
            task.set_config("num_fewshot", num_fewshot)
    return tasks


@functools.cache
def library() -> Any:
    """The lm-eval library's list of tasks. Making it takes seconds, because it reads over ten thousand YAML files."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def check_fewshot(task: Task, name: str, count: int) -> None:
    if not count or not task.has_training_docs():
        return
    pool = len(list(task.training_docs()))
    if pool < count:
        raise UserError(f"--num_fewshot {count}: {name} has only {plural(pool, 'example')}")
