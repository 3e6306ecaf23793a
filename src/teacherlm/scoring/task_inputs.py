"""The inputs of a task for the manifest: test set, task file and the files that it imports, benchmark and prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teacherlm.catalog import benchmarks
from teacherlm.catalog.prompts import contexts_digest
from teacherlm.core import manifests
from teacherlm.scoring import task_files

DATASETS = task_files.SCRIPTS / "lm_eval" / "datasets"
"""The default folder of the test sets (--datasets)."""


def describe_task(name: str, folder: Path, include: Path | None, known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Digests of everything that a task is known to read: Python files, the data at DATASET_PATH, YAML and prompts.

    Args:
        folder: the folder of the test sets.
        include: a folder with more task files, or None.
        known: earlier descriptions; unchanged files are not read again.
    """
    files, paths = files_and_paths(name, folder, include)
    places: dict[str, Path] = {}
    benchmark = benchmarks.benchmark_of(name)
    if benchmark is not None:
        places["benchmark"] = benchmark.path
    for source in dict.fromkeys(source for file in files for source in task_files.sources(file)):
        places["task file" if source == files[0] else f"task file {source.name}"] = source
    sets = [data_of(task_files.in_folder(path, folder)) for path in dict.fromkeys(paths) if path]
    sets = [path for path in sets if path.exists()]
    for number, path in enumerate(sets):
        places["test set" if len(sets) == 1 else f"test set {number}"] = path
    found = {key: manifests.describe(path, known.get(key)) for key, path in places.items()}
    return {**found, "prompts": contexts_digest(benchmark is not None and benchmark.is_open)} if found else {}


def is_open(task: str, include: Path | None) -> bool:
    """Whether a name is that of a benchmark without choices, and no task file has it."""
    benchmark = benchmarks.benchmark_of(task)
    if benchmark is None or not benchmark.is_open or benchmark.name != task:
        return False
    return not any(task in task_files.task_files(place) for place in task_files.task_folders(include))


def data_of(path: str) -> Path:
    """The place of the samples of a DATASET_PATH. For a missing loading script it is the folder (see task_data.py)."""
    place = Path(path)
    return place.parent if place.suffix == ".py" and not place.exists() else place


def files_and_paths(name: str, folder: Path, include: Path | None) -> tuple[list[Path], list[str]]:
    """The task files of a name, and the DATASET_PATHs of its tasks; both are empty for tasks of the lm-eval library.

    The files are executed only if parsing them is not enough, because the libraries that they import take seconds.
    """
    found = (task_files.task_files(place).get(name) for place in task_files.task_folders(include))
    file = next((path for path in found if path), None)
    if file and (paths := task_files.literal_paths(file)):
        return [file], paths
    title, _ = benchmarks.benchmark_and_part(name) or (None, None)
    if title == name and not file and not include:
        return [task_files.TASKS / f"{task_files.TEMPLATE}.py"], [f"{task_files.OLD_DATASETS}/{name}"]

    from teacherlm.scoring.find_tasks import find_classes
    from teacherlm.scoring.task_api import file_of

    kinds = (find_classes(name, folder, include) or {}).values()
    return list(dict.fromkeys(Path(file_of(kind)) for kind in kinds)), [str(kind.DATASET_PATH or "") for kind in kinds]
