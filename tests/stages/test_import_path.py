"""The folder that a command is called in is never one that modules are imported from."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT, only_error

TRACKED = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
MODULES = ("yaml", "torch", "json", "argparse", "random", "socket", "pwd", "tempfile", "transformers", "teacherlm")
PATHS = [None, f"{ROOT}:", f"./::{ROOT}", "../odd"]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with modules that leave a mark when they are imported."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\nraise SystemExit(9)\n"
        )
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "nvidia-smi").write_text("#!/bin/sh\n")  # so that the GPUs are counted
    (programs / "nvidia-smi").chmod(0o755)
    return folder


def call(odd: Path, *command: object, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "LAUNCHER": "local", **variables}
    environment["PATH"] = f"{odd.parent / 'bin'}:{environment['PATH']}"
    command = [str(word) for word in command]
    return subprocess.run(command, cwd=odd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("path", PATHS)
def test_the_chain_imports_nothing_from_the_current_folder(odd: Path, path: str | None) -> None:
    variables = {"CREAK_DATA": "/no where", "RUNS": str(odd.parent / "runs")}
    variables |= {} if path is None else {"PYTHONPATH": path}
    assert "/no where: no such folder" in only_error(call(odd, "bash", ROOT / "slurm/chain.sh", "creak", **variables))
    assert not (odd.parent / "ran").exists()


def test_a_script_finds_its_own_folder_and_not_the_current_one(odd: Path) -> None:
    """PYTHONSAFEPATH, which a user may have set, would hide the script's folder."""
    words = ["/no/model", "/no/input.jsonl", "output.jsonl", "cot_text"]
    result = call(odd, "bash", ROOT / "enhance/enhance.sh", *words, PYTHONPATH=":", PYTHONSAFEPATH="1")
    assert "/no/" in only_error(result)
    assert not (odd.parent / "ran").exists()


def test_gpus_and_a_port_are_found_without_the_current_folder(odd: Path) -> None:
    """finetune.sh, run_hf.sh and ATLAS's experiments start their processes with these functions."""
    code = "from teacherlm.runtime.launcher import *; print(processes_here(), meeting_port('127.0.0.1'))"
    script = 'source "$1/slurm/python.bash"; "$(choose_host_python)" -P -c "$2"'
    result = call(odd, "bash", "-euo", "pipefail", "-c", script, "_", ROOT, code)
    assert result.returncode == 0, result.stderr
    gpus, port = map(int, result.stdout.split())
    assert gpus >= 0 and 1024 <= port < 65536
    assert not (odd.parent / "ran").exists()


def test_no_module_is_run_without_leaving_the_current_folder_out() -> None:
    """`python -m`, `python -c` and `python -` put the current folder first on the path; -P and -I do not."""
    shells = [name for name in TRACKED if name == "Makefile" or name.endswith((".sh", ".bash", ".def", "/run"))]
    wrong = []
    for name in [name for name in shells if not name.startswith("tests/")]:
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if re.search(r"(python[\d.]*|PYTHON\)?)\"? +-(?![PIV] )", re.sub(r"^\s*#.*", "", line)):
                wrong.append(f"{name}:{number}: {line.strip()}")
    for name in [name for name in TRACKED if name.endswith(".py") and not name.startswith(("tests/", "perf/"))]:
        if re.search(r"sys\.executable, \"-(?![PI]\")", (ROOT / name).read_text()):
            wrong.append(name)
    assert wrong == []


def test_what_starts_the_stages_needs_no_packages() -> None:
    """With an image, the launcher runs outside of it, in a Python without packages."""
    modules = [f"chain.{name}" for name in ("main", "job", "download", "steer", "describe_site", "facts")]
    modules += ["finetune.launch", "scoring.launch", "atlas.experiment"]
    code = "\n".join(f"import teacherlm.{name}" for name in modules)
    command = [sys.executable, "-P", "-S", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
