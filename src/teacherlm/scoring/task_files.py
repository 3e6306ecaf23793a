"""Load task files as modules with unique names, so that none replaces another module.

A task file may be called json.py or creak.py. Therefore its folder is never on `sys.path`. The files of a folder are
modules of a package whose name is derived from the folder's path. The meaning of `import creak` in a task file is
decided when that file is compiled: it is a file in the same folder, or else one of this project's task files, or else
the same as in any other module. A file in the same folder never replaces an installed library or a module of Python.
"""

import ast
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote

from teacherlm.core.errors import UserError
from teacherlm.core.places import ROOT

SCRIPTS = ROOT / "evaluate"
TASKS = SCRIPTS / "lm_eval" / "tasks"
TEMPLATE = "creak"
"""The task file that scores a benchmark without a task file."""
NEW_TASK = "new_task"
"""The template that users copy. It is not a task."""
REGISTRY = "__init__"
"""A file that only lists the tasks of the other files (TASK_REGISTRY), as in lm-eval 0.3."""
OLD_DATASETS = "lm_eval/datasets"
"""The folder of test sets in a DATASET_PATH. The folder of --datasets replaces it."""
OLD_PACKAGE = "lm_eval.tasks"
"""The package of task files in lm-eval 0.3."""

FOLDERS: dict[str, Path] = {}
"""Maps the name of each package to the folder whose task files are its modules."""


def task_files(folder: Path) -> dict[str, Path]:
    """The task files of a folder by their names without `.py`."""
    return {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem not in (NEW_TASK, REGISTRY)}


def task_folders(include: Path | None) -> list[Path]:
    """The folders of task files, in the order in which they are searched."""
    return [*([include] if include else []), TASKS]


def is_pattern(name: str) -> bool:
    """Whether a task's name has wildcards, like a pattern for file names in a shell."""
    return any(mark in name for mark in "*?[")


def in_folder(path: str, folder: Path) -> str:
    """A DATASET_PATH in which the folder of the test sets replaces `lm_eval/datasets`. A slash at the end is kept."""
    plain = path.removeprefix("./")
    if plain == OLD_DATASETS or plain.startswith(f"{OLD_DATASETS}/"):
        return f"{folder}{plain.removeprefix(OLD_DATASETS)}"
    return path


def load(path: Path) -> ModuleType:
    """The module of a task file. If any task file has changed, all of them are executed again.

    Raises:
        UserError: the file cannot be imported.
    """
    name = f"{package_of(path.parent)}.{quote(path.stem, safe='').replace('.', '%2E')}"
    known = {name: module for name, module in sys.modules.items() if is_task_module(name)}
    if any(isinstance(module.__loader__, TaskLoader) and module.__loader__.is_stale() for module in known.values()):
        for one in known:
            del sys.modules[one]
    try:
        return importlib.import_module(name)
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error


def package_of(folder: Path) -> str:
    """The name of the package for the task files of a folder."""
    folder = folder.resolve()
    name = f"task_files_{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    FOLDERS[name] = folder
    return name


def is_task_module(name: str) -> bool:
    return name.partition(".")[0] in FOLDERS


def sources(path: Path) -> list[Path]:
    """A task file and all task files that it imports, directly or indirectly."""
    found = [path]
    for file in found:
        found += [other for other in imported_files(file) if other not in found]
    return found


def imported_files(path: Path) -> Iterator[Path]:
    """The other task files that a file imports. A file that is not valid Python imports none."""
    for node in ast.walk(parse(path)):
        names: Sequence[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [
                f"{OLD_PACKAGE}.{name}" for name in ([node.module] if node.module else [a.name for a in node.names])
            ]
        for name in names:
            if found := neighbour(name, path):
                yield from file_of(*found)


def literal_paths(path: Path) -> list[str] | None:
    """Every DATASET_PATH that a file sets; None if one of them is not a string literal, or if there is none."""
    found: list[str] = []
    for node in ast.walk(parse(path)):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if "DATASET_PATH" in {getattr(target, "id", getattr(target, "attr", None)) for target in targets}:
            if not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):
                return None
            found.append(node.value.value)
    return found or None


def parse(path: Path) -> ast.Module:
    return parse_once(path, stamp_of(str(path)))


@functools.lru_cache(maxsize=1024)
def parse_once(path: Path, stamp: tuple[int, int] | None) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # `load` reports the error
        return ast.Module([], [])


def neighbour(name: str, file: Path) -> tuple[Path, str] | None:
    """The folder and name of the task file that a module's name means in a task file; None if it means no task file."""
    if old := name.startswith(f"{OLD_PACKAGE}."):
        name = name.removeprefix(f"{OLD_PACKAGE}.")
    head = name.partition(".")[0]
    if not old and is_library(head):
        return None
    places = (file.parent, TASKS)
    return next(((place, name) for place in places if any(found != file for found in file_of(place, head))), None)


def file_of(folder: Path, name: str) -> Iterator[Path]:
    """Yield the file of a module in a folder, NAME.py or NAME/__init__.py, if there is one."""
    place = folder.joinpath(*map(unquote, name.split(".")))
    files = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    yield from [file for file in files if file.is_file()][:1]


def is_library(head: str) -> bool:
    """Whether a top-level name is a module of Python or of an installed package. evaluate/main.py is neither."""
    if head in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(head)
    except (ImportError, ValueError):
        return True
    return spec is not None and spec.origin is not None and Path(spec.origin).parent != SCRIPTS


class TaskFinder(importlib.abc.MetaPathFinder):
    """Finds the modules in the packages of task files."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package not in FOLDERS:
            return None
        folder = FOLDERS[package].joinpath(*map(unquote, name.split("."))) if name else FOLDERS[package]
        for file in file_of(FOLDERS[package], name) if name else ():
            inside = [str(folder)] if file.parent == folder else None
            loader = TaskLoader(fullname, str(file))
            return importlib.util.spec_from_file_location(
                fullname, file, loader=loader, submodule_search_locations=inside
            )
        if not folder.is_dir():
            return None
        spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return spec


class TaskLoader(importlib.machinery.SourceFileLoader):
    """Compiles a task file with its imports of other task files resolved. It writes no bytecode into the folder."""

    def get_code(self, fullname: str) -> Any:
        self.stamp = stamp_of(self.path)
        tree = ImportsOfTaskFiles(Path(self.path)).visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def is_stale(self) -> bool:
        return self.stamp != stamp_of(self.path)


def stamp_of(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class ImportsOfTaskFiles(ast.NodeTransformer):
    """Replaces the name in each import of a task file by the full module name."""

    def __init__(self, file: Path):
        self.file = file

    def full_name(self, name: str) -> str | None:
        found = neighbour(name, self.file)
        return found and f"{package_of(found[0])}.{found[1]}"

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        return [ast.copy_location(one, node) for alias in node.names for one in self.imports(alias)]

    def imports(self, alias: ast.alias) -> list[ast.stmt]:
        full = self.full_name(alias.name)
        if full is None:
            return [ast.Import([alias])]
        if alias.asname or "." not in alias.name:
            return [ast.Import([ast.alias(full, alias.asname or alias.name)])]
        head = alias.name.partition(".")[0]  # `import a.b` loads a.b and binds a
        return [ast.Import([ast.alias(full, head)]), ast.Import([ast.alias(self.full_name(head), head)])]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt | list[ast.stmt]:
        if node.level:
            return node
        if node.module != OLD_PACKAGE:
            node.module = self.full_name(node.module) or node.module
            return node
        statements: list[ast.stmt] = []
        for alias in node.names:  # `from lm_eval.tasks import creak`
            full = self.full_name(f"{OLD_PACKAGE}.{alias.name}")
            one = ast.Import([ast.alias(full, alias.asname or alias.name)]) if full else None
            statements.append(ast.copy_location(one or ast.ImportFrom(node.module, [alias], 0), node))
        return statements


sys.meta_path.insert(0, TaskFinder())  # before the finder for folders, which would load these files unchanged
