"""The tests marked `gpu`: a process for each file, so that an error of CUDA ends one file only, and time is bounded."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.programs import ROOT

FOLDER = ROOT / "tests" / "gpu"
LONGEST_TEST = 240
"""Seconds after which pytest-timeout, where it is installed, ends a test; the budget ends a file in any case."""


@dataclass(frozen=True)
class Outcome:
    """What came of a test.

    Attributes:
        outcome: "passed", "failed", "skipped", or "cut" where there was no time left for it.
        text: of a failure, or why it was left out.
    """

    name: str
    outcome: str
    seconds: float = 0.0
    text: str = ""


def run_tests(files: Sequence[Path], seconds: float) -> list[Outcome]:
    """The outcomes of all tests of these files, in their order, after at most so many seconds."""
    end = time.monotonic() + seconds
    found: list[Outcome] = []
    for file in files:
        left = end - time.monotonic()
        if left < 1:
            found.append(Outcome(shown(file), "cut", text="no time was left for this file"))
            continue
        print(f"--- {shown(file)}", flush=True)
        found += run_file(file, left)
    return found


def shown(file: Path) -> str:
    """A file's path in the checkout."""
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else file.name


def run_file(file: Path, seconds: float) -> list[Outcome]:
    """The outcomes of the tests of one file."""
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as folder:
        lines = Path(folder) / "outcomes.jsonl"
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--durations=0"]
        command += ["-p", "support.gpu_check.outcomes", f"--outcomes={lines}", f"--override-ini=timeout={LONGEST_TEST}"]
        process = subprocess.Popen([*command, str(file)], cwd=ROOT, start_new_session=True)
        try:
            status = wait(process, seconds)
            ended = f"pytest ended with status {status} before this test's end"
        except subprocess.TimeoutExpired:
            status, ended = None, f"it was ended: the time for all tests was over after {seconds:.0f} s of this file"
        finally:
            end_with_children(process)
        return read_outcomes(lines, file, status, ended)


def wait(process: subprocess.Popen, seconds: float) -> int:
    """A process's exit status.

    Raises:
        TimeoutExpired: it has none after so many seconds.
    """
    return process.wait(seconds)


def end_with_children(process: subprocess.Popen) -> None:
    """End a process, if it runs, and what it started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_outcomes(lines: Path, file: Path, status: int | None, ended: str) -> list[Outcome]:
    """What the plugin wrote, each test once.

    Args:
        status: of pytest; None: it was ended.
        ended: what happened to tests without an outcome.
    """
    text = lines.read_text(encoding="utf-8") if lines.is_file() else ""
    records = [json.loads(line) for line in text.splitlines()]
    known = {record["name"]: Outcome(**record) for record in records if "outcome" in record}
    for record in records:  # a failure of its end counts more than that it passed
        if record.get("outcome") == "failed":
            known[record["name"]] = Outcome(**record)
    without = "cut" if status is None else "failed"
    for record in records:
        known.setdefault(record["name"], Outcome(record["name"], without, text=ended))
    if not known:
        known[""] = Outcome(shown(file), without, text=ended)
    return list(known.values())
