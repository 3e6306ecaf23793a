"""Stages in the image that CONTAINER names. `make container-test` runs these tests."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.programs import ROOT
from support.slurm_cluster import SMALL, Cluster, only_log, start
from support.tiny_models import make_tiny_model

pytestmark = pytest.mark.container
WORDS = {"LIMIT": 12, "EPOCHS": 2, "NUM_TOKENS": 8, "BATCH": 4, "TEMPERATURE": 0, "LAUNCHER": "local"}
INSIDE = str(ROOT / "containers" / "python.sh")


@pytest.fixture(scope="session")
def image() -> Path:
    return Path(os.environ["CONTAINER"]).resolve()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_tiny_model("llama", folder / "tiny")
    return folder


def run(image: Path | None, folder: Path, *command: object, **variables: object) -> subprocess.CompletedProcess:
    """Run a command with the image, or without it in the tests' environment."""
    environment = {name: value for name, value in os.environ.items() if name != "CONTAINER"}
    environment |= {"CONTAINER": str(image)} if image else {"PYTHON": sys.executable}
    environment |= {name: str(value) for name, value in variables.items()}
    return subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)


def chain(image: Path | None, place: Path, runs: str) -> subprocess.CompletedProcess:
    words = {**WORDS, "STUDENT": place / "tiny", "TEACHER": place / "tiny", "RUNS": place / runs}
    result = run(image, place, "bash", ROOT / "slurm" / "chain.sh", "sample", **words)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="session")
def both(image: Path, place: Path) -> tuple[Path, Path]:
    chain(image, place, "inside")
    chain(None, place, "outside")
    return place / "inside", place / "outside"


def test_the_stages_make_the_same_inside_and_outside(both: tuple[Path, Path]) -> None:
    inside, outside = both
    files = [sorted(folder.glob("*/*/enhance/*/SAMPLE_cot.jsonl")) for folder in both]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert numbers(inside, "finetune/*/log.jsonl", "loss") == pytest.approx(
        numbers(outside, "finetune/*/log.jsonl", "loss"), abs=1e-6
    )
    samples = "evaluate/**/*_samples.jsonl"
    assert numbers(inside, samples, "loglikelihoods") == pytest.approx(
        numbers(outside, samples, "loglikelihoods"), abs=1e-6
    )


def numbers(runs: Path, pattern: str, field: str) -> list[float]:
    found: list[float] = []
    for file in sorted(runs.glob(f"*/*/{pattern}")):
        for line in file.read_text().splitlines():
            value = json.loads(line).get(field, {})
            found += value.values() if isinstance(value, dict) else [value]
    assert found
    return found


def test_the_manifests_name_the_image_and_the_revision(image: Path, both: tuple[Path, Path]) -> None:
    digest = subprocess.run(["sha256sum", image], capture_output=True, text=True, check=True).stdout.split()[0]
    inside, outside = ([json.loads(f.read_text()) for f in runs.rglob("*manifest.json")] for runs in both)
    assert {manifest["image"] for manifest in inside} == {f"{image.name}@sha256:{digest}"}
    assert {manifest["image"] for manifest in outside} == {None}
    assert all(manifest["versions"]["teacherlm"] for manifest in inside)


def test_only_the_bound_folders_can_be_written(image: Path, tmp_path: Path) -> None:
    code = f"""
import os
for path in ({str(tmp_path / "a")!r}, {str(tmp_path / "runs" / "a")!r}, {str(ROOT / "a")!r}, "/opt/a", "/etc/a"):
    try:
        open(path, "w").close()
        print(path, "written")
    except OSError as error:
        print(path, error.strerror)
"""
    work = tmp_path / "work"
    work.mkdir()
    result = run(image, work, INSIDE, "-c", code, RUNS=tmp_path / "runs", TMPDIR=work)
    found = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert found.pop(str(tmp_path / "runs" / "a")) == "written", result.stderr
    assert "written" not in {found[path] for path in (str(ROOT / "a"), "/opt/a", "/etc/a")}
    assert not (tmp_path / "a").exists()
    assert not (ROOT / "a").exists()


def test_the_environment_is_clean(image: Path, tmp_path: Path) -> None:
    code = "import os, teacherlm; print(os.environ.get('SECRET'), os.environ['WANDB_MODE'], teacherlm.__file__)"
    result = run(image, tmp_path, INSIDE, "-c", code, SECRET="x", WANDB_MODE="offline")
    assert result.stdout.split() == ["None", "offline", str(ROOT / "src" / "teacherlm" / "__init__.py")]


def test_without_a_checkout_the_image_runs_its_own_wheel(image: Path, tmp_path: Path) -> None:
    program = subprocess.run(
        ["bash", "-c", f"source {ROOT}/containers/apptainer.bash; find_apptainer"], capture_output=True, text=True
    ).stdout.strip()
    of_machine = {"PYTHONPATH": ROOT / "src", "PYTHON": "/usr/bin/python3", "APPTAINER_USERNS": "1"}
    start = [program, "--silent", "run", image]  # its environment has CONTAINER and the variables above
    code = "import teacherlm; from teacherlm.core.places import ROOT; print(teacherlm.__file__, ROOT)"
    shown = run(image, tmp_path, *start, "python", "-c", code, **of_machine)
    package, data = shown.stdout.split()
    assert package == "/opt/venv/lib/python3.11/site-packages/teacherlm/__init__.py", shown.stderr
    assert data == "/opt/venv/lib/python3.11/site-packages/teacherlm/data"
    assert "usage: teacherlm COMMAND" in run(image, tmp_path, *start, "commands", **of_machine).stdout
    flags = run(image, tmp_path, *start, "finetune", "--help", **of_machine)
    assert "--task_type" in flags.stdout, flags.stderr
    few = run(image, tmp_path, *start, "finetune", "model", "dataset", **of_machine)
    assert (few.returncode, few.stderr.count("\n")) == (2, 1)
    assert few.stderr.startswith("finetune.sh: error: 10 arguments")


def test_signals_and_exit_codes_pass_through(image: Path, tmp_path: Path) -> None:
    assert run(image, tmp_path, INSIDE, "-c", "raise SystemExit(75)").returncode == 75
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    environment = {**os.environ, "CONTAINER": str(image)}
    process = subprocess.Popen([INSIDE, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)  # a signal while Apptainer starts is lost; a job would then be killed at the end of its grace time
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 75


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    result = run(tmp_path / "none.sif", tmp_path, "bash", ROOT / "slurm" / "chain.sh", "sample")
    assert result.returncode == 2
    assert "none.sif: there is no such image; make one with: make container" in result.stderr


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes. Apptainer, the model and the folder for runs are in places that any user may read."""
    for cluster in start(tmp_path_factory.mktemp("named"), NAMED="1", NODES="2"):
        for file in cluster.model.iterdir():
            file.chmod(0o644)
        if not shutil.which("apptainer"):
            install = ["bash", ROOT / "containers" / "get_apptainer.sh", cluster.daemons / "apptainer"]
            subprocess.run(install, check=True)
            cluster.environment["PATH"] += f":{cluster.daemons / 'apptainer' / 'bin'}"
        yield cluster


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_jobs_on_two_nodes_run_in_the_image(user: str, named: Cluster, image: Path) -> None:
    site = named.place / "container.env"
    asked = "FINETUNE_ARGS+=(--nodes=2 --ntasks-per-node=1)"
    site.write_text((named.place / "site.env").read_text() + asked + "\n")
    for folder in (named.place, *list(named.place.parents)[:2]):
        folder.chmod(0o755)  # in each test, because another pytest of root removes this permission of the shared folder
    home = named.place / f"home-{user}"
    home.mkdir()
    shutil.chown(home, user)
    if user != "root":  # this user may not read root's folders
        image = Path(shutil.copy(image, named.place))
    words = {"STUDENT": named.model, "TEACHER": named.model, "RUNS": home / "runs", "TASK": "text", "BATCH": 2}
    words |= {**SMALL, "BATCH": 2, "SITE": site, "CONTAINER": image, "HOME": home, "XDG_CACHE_HOME": home / "cache"}
    switch = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups"] if user != "root" else []
    submitted = named.run(*switch, "bash", str(ROOT / "slurm" / "chain.sh"), "sample", **words)
    assert submitted.returncode == 0, submitted.stderr
    runs = f"home-{user}/runs"
    ended = named.await_end(runs)
    assert {state for states in ended.values() for state in states} == {"COMPLETED"}, only_log(named, runs, "prepare")
    assert "the processes run on node1 node2" in only_log(named, runs, "finetune")
    (manifest,) = (home / "runs").glob("*/*/finetune/*/manifest.json")
    assert json.loads(manifest.read_text())["image"].startswith(image.name)
    assert manifest.owner() == user
