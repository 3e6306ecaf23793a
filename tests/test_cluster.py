"""The chain on a real Slurm that this machine runs for the tests: `make test-cluster`."""

import itertools
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
from conftest import ROOT, make_tiny_model

pytestmark = pytest.mark.cluster
SITE = """
CPU_ARGS=(--cpus-per-task=1 --mem=1500M --time=10)
ENHANCE_ARGS=(--cpus-per-task=1 --mem=1500M --time=10)
FINETUNE_ARGS=(--cpus-per-task=1 --mem=1500M --time=10)
EVALUATE_ARGS=(--cpus-per-task=1 --mem=1500M --time=10)
"""
SMALL = {"LIMIT": 12, "EPOCHS": 2, "NUM_TOKENS": 8, "BATCH": 4, "TEMPERATURE": 0, "SIGNAL_SECONDS": 60}


@dataclass
class Cluster:
    """A Slurm of our own, and a place where chains are submitted."""

    place: Path
    model: Path
    environment: dict[str, str]

    def run(self, *command: str, **variables: object) -> subprocess.CompletedProcess:
        environment = {**self.environment, **{name: str(value) for name, value in variables.items()}}
        return subprocess.run(command, cwd=self.place, env=environment, capture_output=True, text=True)

    def make(self, runs: str = "runs", **variables: object) -> subprocess.CompletedProcess:
        """What `make sample VARIABLE=value` does."""
        words = {**SMALL, "STUDENT": self.model, "TEACHER": self.model, "RUNS": self.place / runs, **variables}
        return self.run("bash", str(ROOT / "slurm" / "chain.sh"), "sample", **words)

    def steer(self, command: str, runs: str = "runs", **variables: object) -> subprocess.CompletedProcess:
        return self.run(sys.executable, str(ROOT / "slurm" / "steer.py"), command, RUNS=self.place / runs, **variables)

    def jobs(self, runs: str = "runs") -> list[list[str]]:
        """Rows of what was submitted: stage, job, tasks, waits for, work, log."""
        (table,) = (self.place / runs).glob("*/*/chains/*/jobs.tsv")
        return [line.split("\t") for line in table.read_text().splitlines()]

    def states(self, job: str) -> dict[str, dict[str, str]]:
        """Slurm's record of each task of a job: field -> value."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job).stdout.splitlines()
        records = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in shown]
        return {record.get("ArrayTaskId", "0"): record for record in records}

    def await_end(self, runs: str = "runs", seconds: float = 400) -> dict[str, list[str]]:
        """Wait until nothing of a chain is left to do; job -> the final states of its tasks."""
        jobs = [row[1] for row in self.jobs(runs)]
        self.await_that(lambda: not self.run("squeue", "--noheader", f"--jobs={','.join(jobs)}").stdout, seconds)
        return {job: [record["JobState"] for record in self.states(job).values()] for job in jobs}

    def await_that(self, true: Callable[[], object], seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                queue = self.run("squeue").stdout
                logs = [f"{log}: {log.read_text()[-400:]}" for log in self.place.rglob("logs/*.log")]
                pytest.fail(f"it did not come to be in {seconds} s\n{queue}\n" + "\n".join(logs))
            time.sleep(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from start(tmp_path_factory.mktemp("cluster"))


def start(place: Path, **variables: str) -> Iterator[Cluster]:
    if not shutil.which("sbatch") or os.getuid():
        pytest.skip("needs Slurm and root: make test-cluster")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge wants its socket where all may look, which pytest's folders are not
    environment = {**os.environ, **variables}
    (place / "site.env").write_text(SITE)
    try:
        subprocess.run(["bash", ROOT / "tests" / "cluster" / "start.sh", folder], check=True, env=environment)
        environment |= {"SLURM_CONF": str(folder / "etc" / "slurm.conf"), "PYTHON": sys.executable}
        environment |= {"SITE": str(place / "site.env"), "LAUNCHER": "slurm"}
        yield Cluster(place, make_tiny_model("llama", place / "tiny"), environment)
    finally:
        subprocess.run(["bash", ROOT / "tests" / "cluster" / "stop.sh", folder], check=True)
        shutil.rmtree(folder)


def test_a_chain_of_jobs_makes_what_the_local_launcher_makes(cluster: Cluster) -> None:
    result = cluster.make(SHARDS=4)
    assert result.returncode == 0, result.stderr
    jobs = cluster.jobs()
    assert [row[0] for row in jobs] == ["prepare", "enhance", "merge", "finetune", "evaluate", "report"]
    assert [row[2] for row in jobs] == ["0", "0-3", "0", "0", "0-2", "0"]
    assert [row[3] for row in jobs] == ["-", *(row[1] for row in jobs[:-1])]
    assert {state for states in cluster.await_end().values() for state in states} == {"COMPLETED"}
    records = [list(cluster.states(row[1]).values()) for row in jobs]
    for before, after in itertools.pairwise(records):
        assert max(task["EndTime"] for task in before) <= min(task["StartTime"] for task in after)

    here = cluster.make("here", LAUNCHER="local")
    assert here.returncode == 0, here.stderr
    table = here.stdout.partition("== report\n")[2]
    (report,) = cluster.place.glob("runs/*/*/chains/*/logs/report.log")
    assert table.strip() in report.read_text()
    assert outputs(cluster.place / "runs") == outputs(cluster.place / "here")


def outputs(runs: Path) -> dict[str, bytes]:
    """What a chain is made for: the enhanced records, the weights, each sample's log-likelihoods."""
    found = {}
    for pattern in ("enhance/*/SAMPLE_cot.jsonl", "finetune/*/*/model.safetensors", "evaluate/**/*_samples.jsonl"):
        files = sorted(runs.glob(f"*/*/{pattern}"))
        assert files
        found |= {str(file.relative_to(runs)): file.read_bytes() for file in files}
    return found


def only_log(cluster: Cluster, runs: str, stage: str) -> str:
    (log,) = (cluster.place / runs).glob(f"*/*/chains/*/logs/{stage}.log")
    return log.read_text()


def test_a_shard_that_fails_ends_the_chain_and_alone_is_submitted_again(cluster: Cluster) -> None:
    enhanced = cluster.place / "broken" / "sample" / "limit-12" / "enhance" / "tiny_seed0"
    obstacle = enhanced / ".SAMPLE_cot.shard-1-of-4.jsonl.progress"
    obstacle.mkdir(parents=True)  # a folder where the shard's texts shall go

    assert cluster.make("broken", SHARDS=4).returncode == 0
    ended = cluster.await_end("broken")
    by_stage = {row[0]: ended[row[1]] for row in cluster.jobs("broken")}
    assert sorted(by_stage.pop("enhance")) == ["COMPLETED"] * 3 + ["FAILED"]
    assert by_stage == {
        "prepare": ["COMPLETED"],
        "merge": ["CANCELLED"],
        "finetune": ["CANCELLED"],
        "evaluate": ["CANCELLED"] * len(by_stage["evaluate"]),
        "report": ["CANCELLED"],
    }
    status = cluster.steer("status", "broken").stdout
    assert "1 failed with 2" in status
    assert "3 done" in status
    assert f"enhance 1: enhance.py: error: {obstacle}: this is a folder" in status
    assert "cancelled before it began" in status

    obstacle.rmdir()
    before = len(cluster.jobs("broken"))
    assert cluster.make("broken", SHARDS=4).returncode == 0
    again = cluster.jobs("broken")[before:]
    assert [row[:1] + row[2:3] for row in again[:2]] == [["enhance", "1"], ["merge", "0"]]
    ended = cluster.await_end("broken")
    assert {state for row in again for state in ended[row[1]]} == {"COMPLETED"}


def test_a_chain_that_is_under_way_is_not_submitted_twice_and_another_waits_for_it(cluster: Cluster) -> None:
    first = cluster.make("two", EPOCHS=1)
    assert first.returncode == 0, first.stderr
    twice = cluster.make("two", EPOCHS=1)
    assert twice.returncode == 2
    assert "is under way" in twice.stderr
    other = cluster.make("two", EPOCHS=1, TASK="all")
    assert other.returncode == 0, other.stderr
    tables = sorted((cluster.place / "two").glob("*/*/chains/*/jobs.tsv"))
    rows = {table.parent.name: [line.split("\t") for line in table.read_text().splitlines()] for table in tables}
    cot, everything = rows["tiny_cot_tail_tiny_batch4_seed0"], rows["tiny_all_tiny_batch4_seed0"]
    (first_enhance, first_merge), (enhance, merge) = (
        [row for row in chain if row[0] in ("enhance", "merge")] for chain in (cot, everything)
    )
    assert {first_enhance[1], first_merge[1]} <= set(enhance[3].split())
    assert {enhance[1], first_merge[1]} <= set(merge[3].split())
    jobs = ",".join(row[1] for row in cot + everything)
    cluster.await_that(lambda: not cluster.run("squeue", "--noheader", f"--jobs={jobs}").stdout, 400)
    for row in cot + everything:
        assert {record["JobState"] for record in cluster.states(row[1]).values()} == {"COMPLETED"}
    logs = [log.read_text() for log in (cluster.place / "two").rglob("logs/enhance-0.log")]
    assert sorted("done already" in log for log in logs) == [False, True]


def test_preempted_twice_the_loss_curve_is_the_uninterrupted_one(cluster: Cluster) -> None:
    words = {"LIMIT": 80, "EPOCHS": 2, "BATCH": 1, "TASK": "text"}
    assert cluster.make("whole", **words, LAUNCHER="local").returncode == 0
    assert cluster.make("preempted", **words).returncode == 0
    (job,) = [row[1] for row in cluster.jobs("preempted") if row[0] == "finetune"]
    log = cluster.place / "preempted" / "sample" / "limit-80" / "finetune" / "tiny_text_batch1_seed0" / "log.jsonl"
    for _ in range(2):
        done = len(log.read_text().splitlines()) if log.exists() else 0
        cluster.await_that(lambda done=done: log.exists() and len(log.read_text().splitlines()) > done + 1, 200)
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        cluster.await_that(lambda: cluster.states(job)["0"]["JobState"] == "PENDING")
    assert {state for states in cluster.await_end("preempted").values() for state in states} == {"COMPLETED"}
    assert cluster.states(job)["0"]["Restarts"] == "2"
    assert only_log(cluster, "preempted", "finetune").count("== interrupted: requeued") == 2
    whole = Path(str(log).replace("/preempted/", "/whole/"))
    assert curve(log) == curve(whole)


def curve(log: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def test_cancelled_in_the_middle_and_submitted_again(cluster: Cluster) -> None:
    assert cluster.make("cancelled").returncode == 0
    (job,) = [row[1] for row in cluster.jobs("cancelled") if row[0] == "enhance"]
    cluster.await_that(lambda: cluster.states(job)["0"]["JobState"] == "RUNNING")
    assert "cancelled jobs" in cluster.steer("cancel", "cancelled").stdout
    cluster.await_end("cancelled")
    assert cluster.make("cancelled").returncode == 0
    assert cluster.jobs("cancelled")[6][0] == "enhance"
    cluster.await_end("cancelled")
    assert outputs(cluster.place / "cancelled") == outputs(cluster.place / "here")


def test_a_dry_run_prints_the_lines_and_the_graph_and_submits_nothing(cluster: Cluster) -> None:
    result = cluster.make("dry $(touch pwned) 'x' ; y", DRY_RUN=1, SHARDS=4)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("sbatch ")]
    assert len(lines) == 6
    assert "--array=0-3" in lines[1]
    assert "--dependency=afterok:ID_OF_PREPARE" in lines[1]
    assert 'prepare --> enhance["enhance 0-3"]' in result.stdout
    assert not list(cluster.place.rglob("pwned"))
    assert not list((cluster.place / "dry $(touch pwned) 'x' ; y").rglob("jobs.tsv"))
