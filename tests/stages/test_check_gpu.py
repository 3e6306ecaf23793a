"""make check-gpu: what it says without a GPU, how it runs tests within a budget, what it measures and writes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.gpu_check import __main__ as check_gpu
from support.gpu_check import figures, needs, report, run_tests
from support.gpu_check.run_tests import Outcome
from support.gpu_check.stages import SIZES, STAGES, measure
from support.programs import ROOT

from teacherlm.core.errors import UserError

FILE = """
import os, time
import pytest

pytestmark = pytest.mark.gpu

def test_that_passes():
    pass

def test_that_fails():
    assert [1, 2] == [1, 3], "in /secret/folder"

def test_that_is_left_out():
    pytest.skip("needs a thing")

@pytest.fixture
def broken():
    yield
    raise ValueError("at its end")

def test_whose_end_fails(broken):
    pass

def test_that_ends_everything():
    {last}

def test_after_it():
    pass
"""


FAKE = """#!/bin/sh
echo made ready
case "$4" in
enhance) echo '{"stage": "enhance", "mfu": 0.5}';;
evaluate) echo "ValueError: no" >&2; exit 3;;
*) exec sleep 99;;
esac
"""
"""In place of a python that measures the stage that its fourth word names."""


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Makefile sets it."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT / 'tests'}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_what_it_needs_in_one_line() -> None:
    done = subprocess.run(["make", "check-gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert line.startswith("check-gpu: error: a GPU that torch can use is needed, and torch 2.")
    assert done.stdout == ""


def test_an_old_python_is_named(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    command = ["make", "check-gpu", f"PYTHON={tmp_path}/none", f"BASE_PYTHON={old}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "error: Python 3.11, 3.12, 3.13 or 3.14 is needed, found Python 3.9.2; set BASE_PYTHON=/path/to/python3.12"
    )


def test_packages_that_are_missing_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "NEEDED", {"json": "json", "no_such": "no-such", "nor.this": "nor-this"})
    with pytest.raises(UserError, match=r"lacks no-such, nor-this; the check installs nothing") as raised:
        needs.require_all()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("cuda", "count", "said"),
    [
        (None, 0, "is a build for CPUs"),
        ("13.0", 0, "sees none"),
        ("13.0", 1, "is the driver older than CUDA 13.0"),
    ],
)
def test_why_there_is_no_gpu(cuda: str | None, count: int, said: str) -> None:
    versions = SimpleNamespace(cuda=cuda, hip=None)
    torch = SimpleNamespace(__version__="2.12.0", version=versions, cuda=SimpleNamespace(device_count=lambda: count))
    assert said in needs.why_none(torch)


def run_file(folder: Path, last: str, seconds: float = 120) -> dict[str, Outcome]:
    file = folder / "test_made_up.py"
    file.write_text(FILE.format(last=last))
    return {one.name.rpartition("::")[2]: one for one in run_tests.run_tests([file], seconds)}


def test_each_test_s_outcome_is_known_although_one_ends_the_process(tmp_path: Path) -> None:
    found = run_file(tmp_path, "os._exit(7)")
    assert {name: one.outcome for name, one in found.items()} == {
        "test_that_passes": "passed",
        "test_that_fails": "failed",
        "test_that_is_left_out": "skipped",
        "test_whose_end_fails": "failed",
        "test_that_ends_everything": "failed",
        "test_after_it": "failed",
    }
    assert "assert [1, 2] == [1, 3]" in found["test_that_fails"].text
    assert found["test_that_is_left_out"].text == "needs a thing"
    assert "at its end" in found["test_whose_end_fails"].text
    assert found["test_after_it"].text == "pytest ended with status 7 before this test's end"


def test_what_there_is_no_time_for_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = tmp_path / "reached"

    def wait(process: subprocess.Popen, seconds: float) -> int:
        """Until the test that takes too long has begun, however slow this machine is."""
        while not reached.exists():
            assert process.poll() is None
            time.sleep(0.1)
        raise subprocess.TimeoutExpired(process.args, seconds)

    monkeypatch.setattr(run_tests, "wait", wait)
    found = run_file(tmp_path, f"open({str(reached)!r}, 'w').close(); time.sleep(1000)")
    assert found["test_that_passes"].outcome == "passed"
    assert found["test_that_ends_everything"].outcome == found["test_after_it"].outcome == "cut"
    assert "the time for all tests was over" in found["test_after_it"].text
    (late,) = run_tests.run_tests([tmp_path / "test_made_up.py"], 0)
    assert late.outcome == "cut"


def test_a_file_that_cannot_be_imported_fails(tmp_path: Path) -> None:
    file = tmp_path / "test_wrong.py"
    file.write_text("import no_such_module\n")
    (found,) = run_tests.run_tests([file], 120)
    assert found.outcome == "failed"
    assert "no_such_module" in found.text


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_measured(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)  # the stage's program reads its flags there
    found = measure(stage, "cpu", SIZES["small"])
    assert found["stage"] == stage
    for name in ("tokens_per_second", "seconds", "tokens", "memory_gib", "peak_tflops", "mfu"):
        assert found[name] > 0, name


def test_a_measurement_is_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line counts; it can fail, or take too long, alone."""
    python = tmp_path / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    monkeypatch.setattr(figures.sys, "executable", str(python))
    monkeypatch.setattr(figures, "LONGEST", 2)
    found = figures.measure_all(["enhance", "evaluate", "atlas-read"], "cuda", "whole", 60)
    assert [one["outcome"] for one in found] == ["measured", "failed", "cut"]
    assert found[0]["mfu"] == 0.5
    assert found[1]["text"] == "made ready\nValueError: no\n"
    assert figures.measure_one("enhance", "cuda", "whole", 0)["outcome"] == "cut"


def test_the_file_names_nobody_and_has_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    monkeypatch.setenv("HOME", "/home/erika")
    monkeypatch.setattr(report.getpass, "getuser", lambda: "erika")
    monkeypatch.setattr(report.socket, "gethostname", lambda: "node17.example.org")
    text = f"{ROOT}/src/x.py: hf_abcdefghijkl at /home/erika/x of erika on node17 and node17.example.org"
    outcomes = [Outcome("tests/gpu/test_x.py::test_erika", "failed", 1.0, text), Outcome("b", "passed", 2.0)]
    report.write_report(tmp_path / "out.json", outcomes, [{"stage": "enhance", "text": text}], 12.0)
    written = (tmp_path / "out.json").read_text()
    found = json.loads(written)
    assert found["tests"][0]["text"] == "./src/x.py: [hidden] at HOME/x of USER on HOST and HOST"
    assert found["counts"] == {"passed": 1, "failed": 1, "skipped": 0, "cut": 0}
    assert found["versions"]["torch"] == torch.__version__
    assert {"gpus", "driver", "cuda"} <= found["machine"].keys()
    assert found["beyond_bounds"] == []
    for name in ("hf_abc", "/home/erika", "node17", str(ROOT)):
        assert name not in written


def test_versions_beyond_the_tested_ones_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "version_of", {"transformers": "5.17.0", "torch": "2.11.0+cu130"}.get)
    assert report.beyond_bounds() == ["transformers 5.17.0, <5.20,>=5.18 is what was tested"]


@pytest.mark.parametrize(("outcome", "status"), [("failed", 1), ("cut", 0), ("skipped", 0)])
def test_it_ends_with_tables_the_file_and_a_status(
    outcome: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    outcomes = [Outcome("tests/gpu/test_a.py::test_one", outcome, 1.5, "a\nbecause"), Outcome("two", "passed", 0.1)]
    figure = {
        "stage": "enhance",
        "what": "SmolLM2",
        "dtype": "bfloat16",
        "tokens_per_second": 1234.5,
        "outcome": "measured",
    }
    figure |= {"memory_gib": 3.25, "tflops": 1.5, "mfu": 0.125, "text": ""}
    monkeypatch.setattr(run_tests, "run_tests", lambda files, seconds: outcomes if files else [])
    monkeypatch.setattr(
        figures, "measure_all", lambda *how: [figure, {"stage": "evaluate", "outcome": "cut", "text": "late"}]
    )
    assert check_gpu.check(tmp_path / "out.json") == status
    said = capsys.readouterr().out
    assert "| test_a.py::test_one | " in said and "because" in said
    assert "12.5 %" in said and "late" in said
    assert said.splitlines()[-1] == f"attach this file to a bug report: {tmp_path / 'out.json'}"
    assert len(json.loads((tmp_path / "out.json").read_text())["figures"]) == 2


def test_all_of_it_takes_less_than_15_minutes() -> None:
    assert check_gpu.FOR_TESTS + check_gpu.FOR_FIGURES < 14.5 * 60
    assert set(figures.STAGES) == set(STAGES)


def test_every_file_of_the_gpu_tests_is_marked() -> None:
    files = sorted(run_tests.FOLDER.glob("test_*.py"))
    assert len(files) > 5
    assert [file.name for file in files if "pytestmark = " not in file.read_text(encoding="utf-8")] == []
    assert os.path.commonpath([*map(str, files)]) == str(run_tests.FOLDER)
