"""Start the programs under test, and check the form of their error messages."""

import atexit
import functools
import os
import subprocess
from pathlib import Path

from support.warm_python import LIBRARIES, NEUTRAL, WarmPython, take_over

ROOT = Path(__file__).resolve().parents[2]

SHARED_PYTHON, PLAIN_PYTHON = "TEACHERLM_TESTS_PYTHON", "TEACHERLM_TESTS_PLAIN_PYTHON"
"""The variables that hold the executables of `warm_python` and `plain_python` for processes that this one starts."""

STAGES = {
    "data_prepare": ROOT / "enhance" / "data_prepare.py",
    "enhance": ROOT / "enhance" / "enhance.py",
    "merge": ROOT / "enhance" / "merge.py",
    "finetune": ROOT / "finetune" / "finetune.py",
    "evaluate": ROOT / "evaluate" / "main.py",
}
"""The scripts of the stages."""


def program(name: str) -> list[str]:
    """The words after `python` that start a program: its script, or `-m teacherlm NAME` if it has no script."""
    return [str(STAGES[name])] if name in STAGES else ["-P", "-m", "teacherlm", name]


@functools.cache
def warm_python() -> str:
    """An executable that takes the arguments of `python` and has the libraries loaded; see warm_python.py.

    All processes of a test run share the one that the first of them starts.
    """
    return shared(SHARED_PYTHON, LIBRARIES)


@functools.cache
def plain_python() -> str:
    """Like `warm_python`, but without the libraries that read variables such as HF_HOME when they are imported."""
    return shared(PLAIN_PYTHON, NEUTRAL)


def shared(variable: str, libraries: tuple[str, ...]) -> str:
    if variable in os.environ:
        take_over()
    else:
        started = WarmPython(libraries)
        started.__enter__()
        atexit.register(started.__exit__)
        os.environ[variable] = str(started.executable)
    return os.environ[variable]


def only_error(result: subprocess.CompletedProcess) -> str:
    """The single line on stderr of a stage that ended because of a user's mistake."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()
