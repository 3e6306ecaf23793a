"""Rules of the project that could be broken unnoticed: help in each script, no eval, no hidden library."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import ROOT

TRACKED = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
SCRIPTS = [name for name in TRACKED if name.endswith(".sh")]
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable}


def bash(script: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", ROOT / script, *words], env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_each_script_answers_help(script: str, flag: str) -> None:
    result = bash(script, flag)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: ")
    path = script if script.startswith(("slurm/", "containers/")) else Path(script).name
    path = script.removeprefix("atlas/") if script.startswith("atlas/examples/mmlu/") else path
    assert f"{'sbatch [...]' if script == 'slurm/job.sh' else 'bash'} {path} " in result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_answers_a_wrong_number_of_arguments_with_its_usage(script: str) -> None:
    wrong = {"enhance/enhance.sh": (0, 3), "finetune/finetune.sh": (0, 9), "tests/cluster/install.sh": (1,)}
    wrong["tests/support/browser/install.sh"] = (1,)
    wrong |= dict.fromkeys(("evaluate/run_bloom_mmlu.sh", "evaluate/run_opt_mmlu.sh"), (0,))
    of_cluster = (f"tests/cluster/{name}.sh" for name in ("start", "stop", "remove-networks"))
    wrong |= dict.fromkeys(("slurm/chain.sh", "slurm/download.sh", *of_cluster), (0, 2))
    none = ("containers/build.sh", "containers/debian_mirror.sh", "containers/test.sh", "atlas/examples/demo.sh")
    wrong |= dict.fromkeys(none, (1,))
    wrong |= {"containers/get_apptainer.sh": (2,), "containers/test_image.sh": (0, 2)}
    wrong["containers/python.sh"] = (0,) if "CONTAINER" not in os.environ else ()
    counts = wrong.get(script, (0, 1))
    for count in counts:
        result = bash(script, *["word"] * count)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("usage: ")


@pytest.mark.parametrize("script", [*SCRIPTS, ".ci/run"])
def test_no_script_evaluates_strings_or_goes_on_after_an_error(script: str) -> None:
    source = (ROOT / script).read_text(encoding="utf-8")
    assert "set -euo pipefail" in source
    assert not re.search(r"(^|[;&|({]|\s)eval\s", re.sub(r"#.*", "", source), re.MULTILINE)


def test_the_help_of_make_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    text = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    listed = {word for line in text.splitlines() if line.startswith("  make ") for word in line.split()}
    assert set(targets) <= listed


@pytest.mark.parametrize("folder", [".", "enhance", "evaluate", "evaluate/lm_eval"])
def test_no_folder_of_the_project_hides_a_library(folder: str) -> None:
    """`import datasets`, `evaluate`, `lm_eval` are the installed ones, from wherever python is started."""
    code = (
        "import importlib.util as u\nfor name in ('datasets', 'evaluate', 'lm_eval'): print(u.find_spec(name).origin)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT / folder, capture_output=True, text=True, check=True)
    assert [Path(line).parent.name for line in found.stdout.splitlines()] == ["datasets", "evaluate", "lm_eval"]
    assert all("site-packages" in line for line in found.stdout.splitlines())


def test_evaluate_is_no_package() -> None:
    assert not [name for name in TRACKED if re.fullmatch(r"evaluate/(lm_eval/)?(.*/)?__init__\.py", name)]
    assert not (ROOT / "evaluate" / "__init__.py").exists()
    assert not (ROOT / "evaluate" / "lm_eval" / "__init__.py").exists()
