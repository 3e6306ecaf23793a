"""DRY_RUN=1: the plan of a chain on a machine without Slurm and without the models, and nothing is made."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import contents
from support.programs import ROOT, STAGES, warm_python

PROGRAMS = ("bash", "basename", "cat", "dirname", "env", "id", "stat")


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Call chain.sh in an empty folder, with a PATH that has no program of Slurm's."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).symlink_to(shutil.which(name))
    folder = tmp_path / "here"
    folder.mkdir()

    def call(benchmark: str, **variables: object) -> subprocess.CompletedProcess:
        own = {"DRY_RUN": "1", "PATH": programs, "HF_HOME": folder / "hub", "TEACHERLM_CACHE": folder / "cache"}
        own |= {"PYTHON": sys.executable, "LAUNCHER": "", "SITE": "", "HOME": folder}
        environment = {**os.environ, **{name: str(value) for name, value in {**own, **variables}.items()}}
        command = [programs / "bash", ROOT / "slurm" / "chain.sh", benchmark]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    return call


def sbatch(done: subprocess.CompletedProcess) -> dict[str, list[str]]:
    """Maps each stage to the words of its line."""
    lines = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("sbatch ")]
    return {words[words.index(str(ROOT / "slurm" / "job.sh")) + 1]: words for words in lines}


def test_a_student_without_weights_is_refused_before_any_stage(plan: Callable, tmp_path: Path) -> None:
    for student in ("field:explanation", "http://127.0.0.1:9/model"):
        done = plan("sample", STUDENT=student, TEACHER="smollm2-135m")
        assert done.returncode == 2
        assert "this can only be a teacher (TEACHER, --name)" in done.stderr
    assert list((tmp_path / "here").iterdir()) == []


def test_a_laptop_plans_with_models_that_are_not_downloaded(plan: Callable, tmp_path: Path) -> None:
    done = plan("sample", STUDENT="bloomz-560m", TEACHER="teacherlm-7b1-cot", SHARDS=3, EPOCHS=2)
    assert done.returncode == 0, done.stderr
    notes = done.stderr.splitlines()
    assert all(note.startswith("chain.sh: note: ") for note in notes)
    download = "make download BENCHMARK=sample STUDENT=bloomz-560m TEACHER=teacherlm-7b1-cot"
    assert sum(f"bloomz-560m is not on this machine's disks, and jobs have no internet: {download}" in n for n in notes)
    assert sum("model teacherlm-7b1-cot: set TEACHERLM_WEIGHTS to the folder that holds its" in n for n in notes) == 1
    assert sum("there is no squeue here: the plan assumes that nothing is under way" in note for note in notes) == 1
    lines = sbatch(done)
    assert list(lines) == ["prepare", "enhance", "merge", "finetune", "evaluate", "report"]
    assert "--array=0-2" in lines["enhance"] and "--dependency=afterok:ID_OF_PREPARE" in lines["enhance"]
    assert "--gres=gpu:1" in lines["evaluate"] and "--gres=gpu:1" not in lines["merge"]
    assert 'merge --> finetune["finetune 0"]' in done.stdout
    assert list((tmp_path / "here").iterdir()) == []


def test_after_a_stage_the_plan_has_the_others(plan: Callable, tmp_path: Path) -> None:
    run = tmp_path / "here" / "runs" / "sample" / "all"
    words = ["--benchmark", "sample", "--output_dir", run / "prepare", "--test_dir", run / "prepare" / "test"]
    subprocess.run([warm_python(), STAGES["data_prepare"], *map(str, words)], check=True, capture_output=True)
    before = contents(tmp_path / "here")
    done = plan("sample", STUDENT="bloomz-560m", RUNS=tmp_path / "here" / "runs", EPOCHS=1, TASK="text")
    assert done.returncode == 0, done.stderr
    assert list(sbatch(done)) == ["finetune", "evaluate", "report"]
    assert contents(tmp_path / "here") == before
    assert sorted(path.name for path in run.iterdir()) == ["prepare"]


def test_the_plan_of_an_experiment(plan: Callable, tmp_path: Path) -> None:
    done = plan("atlas-5-shot", DATA_DIR=tmp_path / "data", SIZE="base")
    assert done.returncode == 0, done.stderr
    lines = sbatch(done)
    assert list(lines) == ["prepare", "train", "score", "report"]
    assert "--array=0-56" in lines["train"]
    assert f"{tmp_path}/data/models/atlas/base is missing" in done.stderr
    assert list((tmp_path / "here").iterdir()) == []
    assert not (tmp_path / "data").exists()


def test_the_plan_of_this_machine(plan: Callable, tmp_path: Path) -> None:
    """With LAUNCHER=local, the plan has the commands in a form that a user could type."""
    done = plan("sample", LAUNCHER="local", TASK="text", EPOCHS=1)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("== ")] == [
        "== prepare",
        "== finetune",
        "== evaluate",
        "== report",
    ]
    (prepare,) = [line for line in done.stdout.splitlines() if "data_prepare.py" in line]
    assert shlex.split(prepare)[2:4] == ["--benchmark", "sample"]
    assert list((tmp_path / "here").iterdir()) == []


def test_a_run_on_this_machine_takes_the_folders_of_the_site_and_not_its_requests(
    plan: Callable, tmp_path: Path
) -> None:
    site = tmp_path / "site.env"
    site.write_text(f"RUNS={tmp_path}/large\nPARTITION=gpu\nSBATCH_ARGS=(--qos=low)\nexport HF_HOME={tmp_path}/hub\n")
    done = plan("sample", LAUNCHER="local", TASK="text", EPOCHS=1, SITE=site)
    assert done.returncode == 0, done.stderr
    assert f"outputs go to {tmp_path}/large/sample/all" in done.stdout
    own = plan("sample", LAUNCHER="local", TASK="text", EPOCHS=1, SITE=site, RUNS="mine")
    assert "outputs go to mine/sample/all" in own.stdout


def test_a_mistake_is_one_line_in_a_plan_too(plan: Callable, tmp_path: Path) -> None:
    done = plan("creak", CREAK_DATA="/no where", STUDENT="bloomz-560m")
    assert done.returncode == 2
    assert "/no where: no such folder" in done.stderr.splitlines()[-1]
    assert list((tmp_path / "here").iterdir()) == []
