"""Records that got no text, and why."""

import subprocess
from pathlib import Path

from support.files import read_lines


def last_error(result: subprocess.CompletedProcess) -> str:
    """The single line on stderr after the progress bar, for a run that began its work and then failed."""
    assert result.returncode == 2, result.stderr
    *before, last = result.stderr.splitlines()
    assert not [line for line in before if "rror:" in line]
    assert last.startswith("enhance.py: error: ")
    return last


def failures_of(output: Path) -> list[dict]:
    return read_lines(output.with_suffix(".failures.jsonl"))
