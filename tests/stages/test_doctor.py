"""The doctor runs on a bare Python, and says in one line per item what exists, what is missing, and how to fix it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub_stand_in import serve_hub
from support.programs import ROOT

DOCTOR = ROOT / "src" / "teacherlm" / "chain" / "doctor.py"
SUBJECTS = [
    "Python",
    "C library",
    "packages",
    "torch",
    "GPU driver",
    "disk for runs",
    "disk for caches",
    "scratch folder",
    "quota",
    "memory",
    "HF_HOME",
    "cache of this project",
    "network to the hub",
    "Slurm",
    "Apptainer",
    "user namespaces",
]


def examine(*python: str, **environment: str) -> tuple[subprocess.CompletedProcess, dict[str, tuple[str, str]]]:
    """Run the doctor; return the process, and for each subject ("ok", "LACKS" or "note", the message)."""
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
    way, closing = done.stdout.splitlines()[-2:]
    assert way == "to install here: make install, with python3"
    assert closing.startswith("enhance, finetune, evaluate: fix first: packages, torch")


def test_the_python_of_the_project_has_every_package() -> None:
    done, found = examine()
    assert (done.stderr, list(found)) == ("", SUBJECTS)
    assert (found["Python"][0], found["packages"][0]) == ("ok", "ok")
    assert found["torch"][0] in ("ok", "note")
    lacking = [name for name, (state, _) in found.items() if state == "LACKS"]  # a small machine may lack disk
    closing = f"fix first: {', '.join(lacking)}" if lacking else "ready"
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
    """The demo needs no hub, and the nodes of a cluster have none."""
    done, found = examine(*bare(), HF_HUB_OFFLINE="0", HF_ENDPOINT=endpoint)
    state, text = found["network to the hub"]
    assert (state, done.stderr) == ("note", "")
    assert text.startswith(f"{endpoint} cannot be reached (")
    assert "give folders: STUDENT=/folder" in text


@pytest.mark.parametrize(
    ("script", "state", "text"),
    [
        (
            "printf 'SLURM_VERSION           = 25.05.2\\nMaxArraySize            = 1001\\nJobRequeue = 0\\n'",
            "ok",
            "Slurm 25.05.2; GPUs per node: none; arrays of up to 1001 tasks; jobs are not requeued",
        ),
        ("exit 0", "note", "sbatch is here, but no controller answers: LAUNCHER=local runs a chain on this machine"),
        ("echo no configuration >&2; exit 1", "note", "sbatch is here, but no controller answers: LAUNCHER=local runs"),
    ],
)
def test_slurm_is_there_when_its_controller_answers(tmp_path: Path, script: str, state: str, text: str) -> None:
    for name, does in (("sbatch", "exit 0"), ("sinfo", "exit 1"), ("scontrol", script)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    _, found = examine(*bare(), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (found["Slurm"][0], found["Slurm"][1][: len(text)]) == (state, text)


def test_a_node_without_a_driver_is_not_told_to_ask_a_node() -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has the driver of NVIDIA's GPUs")
    _, found = examine(*bare(), SLURM_JOB_ID="7")
    assert found["GPU driver"][1].startswith("none on this node (")
    _, found = examine(*bare(), SLURM_JOB_ID="")
    assert "srun --gres=gpu:1 make doctor" in found["GPU driver"][1]


def test_it_can_be_read_by_the_python_of_an_old_login_node() -> None:
    ast.parse(DOCTOR.read_text(), feature_version=(3, 6))
    assert not re.search(r"capture_output|removeprefix|: list\[|-> tuple\[|\|=", DOCTOR.read_text())


@pytest.fixture
def old_node(tmp_path: Path) -> dict[str, str]:
    """The environment of a login node whose only python is too old."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").write_text("#!/bin/sh\necho 3.6\nexit 1\n")
    (programs / "python3").chmod(0o755)
    return {"PATH": str(programs), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "MODULEPATH": ""}


def test_a_module_of_the_site_is_the_way_where_python_is_too_old(old_node: dict[str, str], tmp_path: Path) -> None:
    for name in ("python/3.9.5.lua", "python/3.12.3.lua", "Python/3.10.4-GCCcore-11.3.0"):
        file = tmp_path / "modules" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    done, found = examine(*bare(), **{**old_node, "MODULEPATH": f"/none:{tmp_path / 'modules'}"})
    assert found["Python"][1].endswith("; also here: python/3.12.3")
    way = done.stdout.splitlines()[-2]
    assert way.startswith("to install here: module load python/3.12.3 && make BASE_PYTHON=python3 install")
    assert "MODULES=(python/3.12.3)" in way


@pytest.mark.parametrize(
    ("program", "way"),
    [
        ("uv", "to install here: uv python install 3.12"),
        ("apptainer", "to install here: the image"),
        (None, "to install here: Python 3.11 to 3.14 with venv: ask the site, or install uv"),
    ],
)
def test_without_a_fit_python_the_next_way_is_named(
    program: str | None, way: str, old_node: dict[str, str], tmp_path: Path
) -> None:
    if program:
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\necho {program} version 1\n")
        (tmp_path / "bin" / program).chmod(0o755)
    done, _ = examine(*bare(), **old_node)
    assert done.stdout.splitlines()[-2].startswith(way), done.stdout


def test_the_scratch_folder_is_named_by_its_variable(tmp_path: Path) -> None:
    _, found = examine(*bare(), SCRATCH=str(tmp_path))
    assert found["scratch folder"][1].startswith("$SCRATCH: ")
    assert "RUNS=$SCRATCH/teacherlm" in found["scratch folder"][1]
