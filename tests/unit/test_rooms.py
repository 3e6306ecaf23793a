"""The rooms of the package and the arrows between them, as docs/explanation/architecture.md has them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.programs import ROOT

PACKAGE = ROOT / "src" / "teacherlm"
SHARED = {"core": set(), "catalog": {"core"}, "runtime": {"core", "catalog"}}
STAGES = ("dataset", "enhance", "finetune", "scoring", "atlas")
ON_TOP = ("report", "chain")
MAY_IMPORT = {
    **SHARED,
    **{stage: {"core", "catalog", "runtime"} for stage in STAGES},
    **{room: {"core", "catalog", "runtime", *STAGES} for room in ON_TOP},
}
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of each import of this project in a file, also those within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: imports are absolute"
            module = node.module or ""
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def test_every_room_is_known() -> None:
    assert sorted(MAY_IMPORT) == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_no_arrow_runs_backwards(room: str) -> None:
    wrong = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for line, module in imports(path):
            parts = module.split(".")
            if parts[0] == "teacherlm" and parts[1] not in {room, *MAY_IMPORT[room]}:
                wrong.append(f"{path.relative_to(ROOT)}, line {line}: {module}")
    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_in_it(room: str) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
    assert said and len(said) > 40


def test_the_import_path_is_edited_nowhere() -> None:
    """Task files of users have a finder of their own (scoring/task_files.py), which leaves the path as it is."""
    command = ["git", "-C", str(ROOT), "grep", "--line-number", "-E", r"sys\.path(\[|\.(insert|append|remove))", "--"]
    found = subprocess.run([*command, ":!tests"], capture_output=True, text=True).stdout.splitlines()
    assert found == []


def test_nothing_of_ours_has_a_general_name(tmp_path: Path) -> None:
    """What an installation adds to what can be imported is `teacherlm` alone."""
    names = ("job", "work", "page", "dev", "table", "student", "engines", "atlas", "chain", "enhance", "finetune")
    code = f"import importlib.util; print([name for name in {names!r} if importlib.util.find_spec(name)])"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
