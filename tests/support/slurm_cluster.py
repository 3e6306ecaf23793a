"""A real Slurm that this machine runs for the tests, and the operations of tests on it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.programs import ROOT, program
from support.tiny_models import make_tiny_model

SITE = """
CPU_ARGS=(--cpus-per-task=1 --mem=1500M --time=10)
ENHANCE_ARGS=(--cpus-per-task=1 --mem=1500M --time=10)
FINETUNE_ARGS=(--cpus-per-task=1 --mem=1500M --time=10)
EVALUATE_ARGS=(--cpus-per-task=1 --mem=1500M --time=10)
"""
SMALL = {"LIMIT": 12, "EPOCHS": 2, "NUM_TOKENS": 8, "BATCH": 4, "TEMPERATURE": 0, "SIGNAL_SECONDS": 60}


@dataclass
class Cluster:
    """A Slurm that the tests started, and a folder from which chains are submitted."""

    place: Path
    daemons: Path
    model: Path
    environment: dict[str, str]

    def run(self, *command: str, **variables: object) -> subprocess.CompletedProcess:
        environment = {**self.environment, **{name: str(value) for name, value in variables.items()}}
        return subprocess.run(command, cwd=self.place, env=environment, capture_output=True, text=True)

    def make(self, runs: str = "runs", **variables: object) -> subprocess.CompletedProcess:
        """Do what `make sample VARIABLE=value` does."""
        words = {**SMALL, "STUDENT": self.model, "TEACHER": self.model, "RUNS": self.place / runs, **variables}
        return self.run("bash", str(ROOT / "slurm" / "chain.sh"), "sample", **words)

    def steer(self, command: str, runs: str = "runs", **variables: object) -> subprocess.CompletedProcess:
        return self.run(sys.executable, *program("steer"), command, RUNS=self.place / runs, **variables)

    def jobs(self, runs: str = "runs") -> list[list[str]]:
        """The submitted jobs as rows: stage, job, tasks, dependencies, work, log."""
        (table,) = (self.place / runs).glob("*/*/chains/*/jobs.tsv")
        return [line.split("\t") for line in table.read_text().splitlines()]

    def job(self, runs: str, stage: str) -> str:
        """The number of a stage's last job."""
        return [row[1] for row in self.jobs(runs) if row[0] == stage][-1]

    def state(self, job: str, task: int = 0) -> str:
        return self.states(job)[str(task)]["JobState"]

    def states(self, job: str) -> dict[str, dict[str, str]]:
        """Slurm's record of each task of a job, as a mapping of fields to values."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job).stdout.splitlines()
        records = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in shown]
        return {record.get("ArrayTaskId", "0"): record for record in records}

    def have_ended(self, jobs: list[str]) -> bool:
        """Whether no task of these jobs waits or runs. A busy controller may not answer; then it is asked again."""
        asked = self.run("squeue", "--noheader", f"--jobs={','.join(jobs)}")
        known = not asked.returncode or "Invalid job id" in asked.stderr  # the controller forgets old jobs
        states = [record.get("JobState") for job in jobs for record in self.states(job).values()]
        return known and not asked.stdout and not {"PENDING", "RUNNING", "COMPLETING", None} & set(states)

    def await_end(self, runs: str = "runs", seconds: float = 600) -> dict[str, list[str]]:
        """Wait until a chain has ended, and return a mapping of jobs to the final states of their tasks."""
        jobs = [row[1] for row in self.jobs(runs) if row[1] != "-"]
        self.await_that(lambda: self.have_ended(jobs), seconds)
        return {job: [record["JobState"] for record in self.states(job).values()] for job in jobs}

    def await_that(self, true: Callable[[], object], seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                queue = self.run("squeue").stdout
                logs = [f"{log}: {log.read_text()[-400:]}" for log in self.place.rglob("logs/*.log")]
                pytest.fail(f"it did not come to be in {seconds} s\n{queue}\n" + "\n".join(logs))
            time.sleep(0.5)


def start(place: Path, **variables: str) -> Iterator[Cluster]:
    if not shutil.which("sbatch") or os.getuid():
        pytest.skip("needs Slurm and root: make test-cluster")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge wants its socket where all may look, which pytest's folders are not
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = {"PORT": str(16817 + 200 * worker + 100 * int(variables.get("NAMED", 0)))}
    environment = {**os.environ, **ports, "FIRST_JOB": str(1 + 500 * worker), **variables}
    (place / "site.env").write_text(SITE)
    for name in ("json", "random", "teacherlm", "torch", "yaml"):  # where all is called and all jobs begin
        (place / f"{name}.py").write_text("raise SystemExit('a module of the current folder was imported')\n")
    try:
        command = ["bash", ROOT / "tests" / "cluster" / "start.sh", folder]
        status = subprocess.run(command, env=environment).returncode
        if status == 77:
            pytest.skip("this machine allows no network namespaces")
        assert status == 0
        environment |= {"SLURM_CONF": str(folder / "etc" / "slurm.conf"), "PYTHON": sys.executable}
        environment |= {"SITE": str(place / "site.env"), "LAUNCHER": "slurm"}
        yield Cluster(place, folder, make_tiny_model("llama", place / "tiny"), environment)
    finally:
        subprocess.run(["bash", ROOT / "tests" / "cluster" / "stop.sh", folder], check=True)
        shutil.rmtree(folder)


def outputs(runs: Path) -> dict[str, bytes]:
    """The results of a chain: the enhanced records, the weights, and the log-likelihoods of each sample."""
    found = {}
    for pattern in ("enhance/*/SAMPLE_cot.jsonl", "finetune/*/*/model.safetensors", "evaluate/**/*_samples.jsonl"):
        files = sorted(runs.glob(f"*/*/{pattern}"))
        assert files
        found |= {str(file.relative_to(runs)): file.read_bytes() for file in files}
    return found


def only_log(cluster: Cluster, runs: str, stage: str) -> str:
    (log,) = (cluster.place / runs).glob(f"*/*/chains/*/logs/{stage}.log")
    return log.read_text()


def curve(log: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]
