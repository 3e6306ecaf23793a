"""A variable that nothing reads is said: by make, which ends, and by a chain, which warns."""

import os
import subprocess
from pathlib import Path

import pytest
from support.programs import ROOT

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "EPOCH"))}
"""Without what a make has set that runs these tests."""


def start(*command: object, **variables: str) -> subprocess.CompletedProcess:
    environment = {**ENVIRONMENT, **variables}
    return subprocess.run([*map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("how", [(), ("-n", "-j2")])
def test_make_ends_with_a_line_that_names_the_near_variable(how: tuple[str, ...]) -> None:
    result = start("make", *how, "creak", "STUDNET=x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "*** nothing reads a variable STUDNET; did you mean STUDENT?" in result.stderr


def test_make_takes_what_is_read_and_leaves_the_environment_alone() -> None:
    given = ("STUDENT=x", "V=1", "CREAK_DATA=/x", "HF_HOME=/x", "MAKEFLAGS=", "-j4")
    result = start("make", "help", *given, STUDNET="x", COLOUR="red")
    assert (result.returncode, result.stderr) == (0, "")


def test_the_variables_of_a_make_that_starts_this_one_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(f"all:\n\t@$(MAKE) --no-print-directory -C {ROOT} help\n")
    assert start("make", "-C", tmp_path, "COLOUR=red").returncode == 0


def test_a_chain_warns_of_a_variable_that_is_misspelt(tmp_path: Path) -> None:
    variables = {"EPOCH": "3", "LAUNCHER": "local", "DRY_RUN": "1", "RUNS": str(tmp_path)}
    result = start("bash", "slurm/chain.sh", "sample", **variables)
    assert result.returncode == 0
    assert result.stderr == "chain.sh: warning: no chain reads EPOCH, which is set; did you mean EPOCHS?\n"


def test_a_variable_after_the_benchmark_is_said() -> None:
    result = start("bash", "slurm/chain.sh", "sample", "STUDENT=x")
    assert (result.returncode, result.stdout) == (2, "")
    expected = "STUDENT=x: variables stand before the command: STUDENT=x bash slurm/chain.sh sample"
    assert result.stderr == f"chain.sh: error: {expected}\n"
