"""The doctor runs on a bare Python, says in a line each what is there and what is not, and how to mend it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub_stand_in import serve_hub
from support.programs import ROOT

DOCTOR = ROOT / "src" / "teacherlm" / "chain" / "doctor.py"
SUBJECTS = [
    "Python",
    "packages",
    "torch",
    "disk for runs",
    "disk for caches",
    "memory",
    "HF_HOME",
    "cache of this project",
    "network to the hub",
    "Slurm",
    "Apptainer",
]


def examine(*python: str, **environment: str) -> tuple[subprocess.CompletedProcess, dict[str, tuple[str, str]]]:
    """Run the doctor; returns the process and, by subject, (ok, LACKS or note; what it says)."""
    command = [*(python or [sys.executable]), str(DOCTOR)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment, timeout=60
    )
    lines = done.stdout.partition("\n\n")[0].splitlines()
    return done, {line[7:29].strip(): (line[:5].strip(), line[30:]) for line in lines}


def bare() -> list[str]:
    """The Python that .venv was made with, without any package: what a new machine has."""
    return [sys._base_executable, "-I", "-S"]


def test_a_bare_python_is_told_what_it_lacks_and_how_to_mend_it() -> None:
    done, found = examine(*bare())
    assert (done.returncode, done.stderr) == (1, "")
    assert list(found) == SUBJECTS
    assert found["torch"] == ("LACKS", "not installed; run: make install")
    state, text = found["packages"]
    assert (state, text.endswith("more; run: make install")) == ("LACKS", True)
    assert done.stdout.splitlines()[-1].startswith("enhance, finetune, evaluate: mend first: packages, torch")


def test_the_python_of_the_project_has_every_package() -> None:
    done, found = examine()
    assert (done.stderr, list(found)) == ("", SUBJECTS)
    assert (found["Python"][0], found["packages"][0]) == ("ok", "ok")
    assert found["torch"][0] in ("ok", "note")
    lacking = [name for name, (state, _) in found.items() if state == "LACKS"]  # a small machine may lack disk
    closing = f"mend first: {', '.join(lacking)}" if lacking else "ready"
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        1 if lacking else 0,
        f"enhance, finetune, evaluate: {closing}",
    )


@pytest.mark.parametrize(
    ("variable", "subject"), [("HF_HOME", "HF_HOME"), ("TEACHERLM_CACHE", "cache of this project")]
)
def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, variable: str, subject: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    done, found = examine(*bare(), **{variable: str(folder)})
    assert found[subject] == ("LACKS", f"{folder} cannot be written; set {variable} to a folder of yours")
    assert done.stdout.splitlines()[-1].endswith(f", {subject}")


def test_a_cache_that_is_not_there_yet_is_no_lack(tmp_path: Path) -> None:
    _, found = examine(*bare(), HF_HOME=str(tmp_path / "new" / "hf"))
    assert found["HF_HOME"] == ("ok", f"{tmp_path / 'new' / 'hf'} can be written")
    assert not (tmp_path / "new").exists()


def test_a_hub_that_answers_is_ok(tmp_path: Path) -> None:
    with serve_hub(tmp_path) as hub:
        _, found = examine(*bare(), HF_HUB_OFFLINE="0", HF_ENDPOINT=hub.endpoint)
    assert found["network to the hub"] == ("ok", f"{hub.endpoint} answers")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://127.0.0.1:port", "http://[::1"])
def test_a_hub_that_cannot_be_reached_is_a_note_with_the_way_around(endpoint: str) -> None:
    """The demo needs none, and a cluster's nodes have none."""
    done, found = examine(*bare(), HF_HUB_OFFLINE="0", HF_ENDPOINT=endpoint)
    state, text = found["network to the hub"]
    assert (state, done.stderr) == ("note", "")
    assert text.startswith(f"{endpoint} cannot be reached (")
    assert "give folders: STUDENT=/folder" in text


@pytest.mark.parametrize(
    ("script", "state", "text"),
    [
        ("echo slurm 25.05.2", "ok", "slurm 25.05.2"),
        ("exit 0", "ok", "sbatch"),
        ("echo no configuration >&2; exit 1", "note", "sbatch is here but fails"),
    ],
)
def test_a_command_that_fails_is_not_taken_for_one_that_works(
    tmp_path: Path, script: str, state: str, text: str
) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "sbatch").chmod(0o755)
    _, found = examine(*bare(), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (found["Slurm"][0], found["Slurm"][1].startswith(text)) == (state, True)
