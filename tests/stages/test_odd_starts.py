"""Programs that are started in odd ways: in a folder that is gone, without a standard output, with a wrong variable."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT, STAGES

DOCTOR = ROOT / "src" / "teacherlm" / "chain" / "doctor.py"


def started(words: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(["bash", "-c", words], capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize(
    "command", ["-m teacherlm report x", "-m teacherlm doctor", DOCTOR, *(STAGES[name] for name in STAGES)], ids=str
)
def test_a_current_folder_that_is_gone_is_one_line(tmp_path: Path, command: object) -> None:
    done = started(f'mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone && "$PYTHON" -P {command}')
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "error: the current folder was deleted" in line


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_closed_output_is_no_file_s_place(tmp_path: Path, closed: str) -> None:
    words = f'"$PYTHON" -P {STAGES["data_prepare"]} --benchmark sample --output_dir {tmp_path} --test_dir {tmp_path}/t'
    done = started(f"{words} {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "SAMPLE.manifest.json").is_file()
    said = started(f"{words} --data {tmp_path}/nothing {closed}")
    assert said.returncode == 2
    assert said.stderr.count("\n") == (0 if "2>&-" in closed else 1)


@pytest.mark.parametrize("words", [f'"$PYTHON" {DOCTOR}', '"$PYTHON" -P -m teacherlm doctor'])
def test_the_doctor_says_what_torch_says(words: str) -> None:
    done = started(words, TORCH_LOGS="junk")
    assert done.returncode == 1, done.stderr
    assert "LACKS  torch                  cannot be imported (" in done.stdout
    if "-m" not in words:  # the other way it is the same function
        assert started(f"{words} >&-").stderr == ""
