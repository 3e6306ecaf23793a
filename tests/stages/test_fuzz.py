"""Damaged files of every kind: a few damages each, and all that was once read wrongly. `make fuzz` makes 10,000."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.fuzz.__main__ import SUBJECTS
from support.fuzz.harness import ADDRESSES, FOUND, MEMORY, Subject, load_case, run_subject, save_case
from support.programs import ROOT, warm_python

from teacherlm.core.errors import UserError

COUNT, MORE = 25, {"records": 300, "model_files": 100, "benchmark_files": 100}
"""Number of damages per subject. Subjects that are read in a hundredth of a second get more damages."""


@pytest.mark.parametrize("name", SUBJECTS)
def test_what_is_damaged_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    count = MORE.get(name, COUNT)
    words = ["--only", name, "--count", str(count), "--workers", "2", "--keep", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [warm_python(), "-P", "-m", "support.fuzz", *words]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    row = [cell.strip() for cell in result.stdout.splitlines()[-1].split("|")]
    found = len(list(FOUND.glob(f"{name}-*.json")))
    assert row[1:3] == [name, str(1 + found + count)]


# --------------------------------------------------------------------------------------------------------- the harness


def kill(place: Path) -> None:
    ctypes.string_at(1)


def refuse(place: Path) -> None:
    raise UserError((place / "words").read_text())


WRONG = [
    ("ZeroDivisionError tests/stages/test_fuzz.py", lambda place: 1 / 0),
    ("SIGSEGV", kill),
    ("memory", lambda place: b"x" * MEMORY),
    ("MemoryError", lambda place: b"x" * (2 * ADDRESSES)),
    ("outside open", lambda place: (place.parent / "x").write_text("x")),
    ("outside file", lambda place: os.replace("number", "another")),
    ("outside subprocess.Popen", lambda place: subprocess.run(["true"])),
    ("message names no file", refuse),
    ("control characters", lambda place: print("\x1b[2J")),
    ("exit status 7", lambda place: sys.exit(7)),
]
"""The name of each fault, and code that causes it."""


def test_every_kind_of_fault_is_found_and_can_be_had_again(tmp_path: Path) -> None:
    def example(folder: Path) -> None:
        (folder / "number").write_text("right")
        (folder / "words").write_text("something is wrong")

    def read(place: Path) -> None:
        number = (place / "number").read_text()
        if number != "right":
            WRONG[int(number)][1](place)

    subject = Subject("wrong", example, read)
    cases = [-1]
    for number in range(len(WRONG)):
        cases.append(str(tmp_path / f"wrong-{number}.json"))
        save_case(Path(cases[-1]), {"number": b"%d" % number}, {})
    (tmp_path / "work").mkdir()
    summary = run_subject(subject, cases, 0, tmp_path / "work", 2, tmp_path / "kept")
    assert summary.outcomes == {"read": 1, "fault": len(WRONG)}
    found = {fault.case: fault.where for fault in summary.faults}
    for (where, _), case in zip(WRONG, cases[1:], strict=True):
        assert found[case].startswith(where), (found[case], where)
        kept = tmp_path / "kept" / Path(case).name
        assert load_case(kept, {"number": b"right", "words": b""})["number"] == Path(case).stem[6:].encode()
