"""The tasks in a task file, and the names by which they can be selected."""

import contextlib
import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from teacherlm.core.errors import UserError, one_line
from teacherlm.scoring import task_files
from teacherlm.scoring.old_modules import install
from teacherlm.scoring.task_api import Task

REGISTRY_FUNCTIONS = ("create_all_tasks", "construct_tasks")
"""Names of functions in task files of lm-eval 0.3 that return the file's tasks by name."""

Kind = type[Task]


@dataclass(frozen=True)
class FileTasks:
    """The tasks of one file.

    Attributes:
        path: the file.
        tasks: maps one name of each task to its class. A class from which others in the file are derived is not a task.
        names: maps every name that selects a task to its class, or to several classes if they share the name.
    """

    path: Path
    tasks: Mapping[str, Kind]
    names: Mapping[str, list[Kind]]

    def named(self, name: str) -> dict[str, Kind]:
        """The tasks that the name of the file selects: its only task, or all of its tasks.

        Raises:
            UserError: the only task is derived from another class that could be meant as well.
        """
        if len(self.tasks) != 1:
            return dict(self.tasks)
        [kind] = self.tasks.values()
        mine = {one for kinds in self.names.values() for one in kinds}
        if others := [base for base in kind.__mro__[1:] if base in mine and is_complete(base)]:
            both = " or ".join(one.__name__ for one in (*others, kind))
            raise UserError(f"{self.path}: {name} may mean several tasks of this file; ask for {both}")
        return {name: kind}

    def matching(self, accepts: Callable[[str], bool]) -> dict[str, Kind]:
        """The tasks that have an accepted name, by the first such name."""
        found = {}
        for own, kind in self.tasks.items():
            names = [own, *(name for name, kinds in self.names.items() if kinds == [kind])]
            if name := next(filter(accepts, names), None):
                found[name] = kind
        return found


def read_task_file(path: Path) -> FileTasks:
    """The tasks of a file.

    Raises:
        UserError: the file cannot be imported or defines no task, or a task lacks required methods, which are named.
    """
    install()
    return tasks_of(task_files.load(path), path)


@functools.lru_cache(maxsize=1024)
def tasks_of(module: ModuleType, path: Path) -> FileTasks:
    """The tasks of a module: those in a dict of tasks by name or from `create_all_tasks()`, and its task classes."""
    registered, own = registered_tasks(module), own_classes(module)
    everything = {*registered.values(), *own.values()}
    bases = {base for kind in everything for base in kind.__mro__[1:]}
    leaves = {name: kind for name, kind in own.items() if kind not in bases and kind not in registered.values()}
    for kind in leaves.values():
        require_methods(kind, path)
    tasks = dict(registered)
    for name, kind in leaves.items():
        if kind not in tasks.values() and is_complete(kind):
            whole = name if name.startswith(f"{path.stem}_") else f"{path.stem}_{name}"
            tasks[name if whole in tasks or whole in own else whole] = kind
    if not tasks and leaves:
        require_no_arguments(next(iter(leaves.values())), path)
    if not tasks and path.stem != task_files.REGISTRY:
        raise UserError(f"{path}: no class that is derived from lm_eval.base.Task")
    if len(tasks) == 1 and not registered:
        tasks = dict(zip([path.stem], tasks.values()))
    return FileTasks(path, tasks, all_names(path.stem, {**own, **registered}, tasks))


def all_names(stem: str, known: Mapping[str, Kind], tasks: Mapping[str, Kind]) -> dict[str, list[Kind]]:
    """Maps names to classes: names of tasks, names in the file, the latter as FILE_NAME, and names of classes."""
    names = {name: [kind] for name, kind in {**known, **tasks}.items()}
    for name, kind in known.items():
        names.setdefault(f"{stem}_{name}", [kind])
    clear = set(names)
    for kind in dict.fromkeys(known.values()):
        for name in {kind.__name__, getattr(kind, "EVAL_HARNESS_NAME", kind.__name__)} - clear:
            names.setdefault(name, []).append(kind)
    return names


def registered_tasks(module: ModuleType) -> dict[str, Kind]:
    """The tasks that a file registers by name, in its dicts or through its functions REGISTRY_FUNCTIONS."""
    found: dict[str, Kind] = {}
    tables = [value for value in vars(module).values() if isinstance(value, Mapping) and is_table(value)]
    for name in REGISTRY_FUNCTIONS:
        function = vars(module).get(name)
        if isinstance(function, FunctionType) and function.__module__ == module.__name__:
            with task_errors(f"{name}() in {module.__file__}"):
                tables.append(function())
            if not is_table(tables[-1]):
                raise UserError(f"{module.__file__}: {name}() must return a dict of names and task classes")
    for table in tables:
        found |= table
    return found


def is_table(value: Any) -> bool:
    return (
        isinstance(value, Mapping) and bool(value) and all(isinstance(k, str) and is_task(v) for k, v in value.items())
    )


def own_classes(module: ModuleType) -> dict[str, Kind]:
    """The task classes that a file defines, by their names in it. Imported classes are not included."""
    found = {}
    for name, value in vars(module).items():
        listed = value if isinstance(value, list | tuple) else ()
        for own, kind in ((name, value), *((getattr(one, "__name__", ""), one) for one in listed)):
            if is_task(kind) and not is_imported(kind, module):
                found.setdefault(own, kind)
    return found


def is_task(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Task) and value.__module__ != Task.__module__


def is_imported(kind: Kind, module: ModuleType) -> bool:
    """Whether a class belongs to another file. A class that another file's function made for this file does not."""
    other = sys.modules.get(kind.__module__)
    return other is not module and getattr(other, kind.__name__, None) is kind


def is_complete(kind: Kind) -> bool:
    return not kind.__abstractmethods__ and not needed_arguments(kind)


def needed_arguments(kind: Kind) -> list[str]:
    """The arguments without which a class cannot be instantiated."""
    empty, several = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return [one.name for one in parameters if one.default is empty and one.kind not in several]


def require_methods(kind: Kind, path: Path | str) -> None:
    if kind.__abstractmethods__:
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise UserError(f"{path}: the class {kind.__name__} lacks {missing}")


def require_no_arguments(kind: Kind, path: Path | str) -> None:
    if needed := needed_arguments(kind):
        raise UserError(
            f"{path}: the class {kind.__name__} needs arguments ({', '.join(needed)}); derive a class for each task, "
            "or return them by name from create_all_tasks()"
        )


@contextlib.contextmanager
def task_errors(what: str, always: str | None = None) -> Iterator[None]:
    """Turn an error in the code of a task file into one line that names the file, the line and `what`.

    Args:
        always: the place to name if the error was not raised in a task file. With None, such an error is not changed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = place_of(error) or always
        if place is None:
            raise
        raise UserError(f"{place}: {what}: {type(error).__name__}: {one_line(error)}") from error


def place_of(error: Exception) -> str | None:
    """The innermost line of a task file in an error's traceback; None if there is none."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    places = [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in frames
        if task_files.is_task_module(frame.f_globals.get("__name__", ""))
    ]
    return places[-1] if places else None
