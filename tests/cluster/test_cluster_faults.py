"""Faults on a real cluster: `make test-cluster`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.programs import STAGES
from support.slurm_cluster import Cluster, curve, only_log, outputs

pytestmark = pytest.mark.cluster


def test_a_shard_that_fails_ends_the_chain_and_alone_is_submitted_again(cluster: Cluster) -> None:
    enhanced = cluster.place / "broken" / "sample" / "limit-12" / "enhance" / "tiny_seed0"
    obstacle = enhanced / ".SAMPLE_cot.shard-1-of-4.jsonl.progress"
    obstacle.mkdir(parents=True)  # a folder in the place of the shard's file

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
    assert [row[:3] for row in again[:1]] == [["enhance", "-", "0,2-3"]]
    assert [row[:1] + row[2:3] for row in again[1:3]] == [["enhance", "1"], ["merge", "0"]]
    ended = cluster.await_end("broken")
    assert {state for row in again[1:] for state in ended[row[1]]} == {"COMPLETED"}


def test_preempted_twice_the_loss_curve_is_the_uninterrupted_one(cluster: Cluster) -> None:
    words = {"LIMIT": 80, "EPOCHS": 2, "BATCH": 1, "TASK": "text"}
    assert cluster.make("whole", **words, LAUNCHER="local").returncode == 0
    assert cluster.make("preempted", **words).returncode == 0
    job = cluster.job("preempted", "finetune")
    log = cluster.place / "preempted" / "sample" / "limit-80" / "finetune" / "tiny_text_batch1_seed0" / "log.jsonl"
    for _ in range(2):
        done = len(log.read_text().splitlines()) if log.exists() else 0
        cluster.await_that(lambda done=done: log.exists() and len(log.read_text().splitlines()) > done + 1, 200)
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        cluster.await_that(lambda: cluster.state(job) == "PENDING")
    assert {state for states in cluster.await_end("preempted").values() for state in states} == {"COMPLETED"}
    assert cluster.states(job)["0"]["Restarts"] == "2"
    assert only_log(cluster, "preempted", "finetune").count("== interrupted: requeued") == 2
    whole = Path(str(log).replace("/preempted/", "/whole/"))
    assert curve(log) == curve(whole)


@pytest.mark.xdist_group("compared")
@pytest.mark.usefixtures("local_chain")
def test_cancelled_in_the_middle_and_submitted_again(cluster: Cluster) -> None:
    """In a folder whose name a shell could misread."""
    runs = "it's; $(touch pwned) %a"
    assert cluster.make(runs).returncode == 0
    job = cluster.job(runs, "enhance")
    cluster.await_that(lambda: cluster.state(job) == "RUNNING")
    assert "cancelled jobs" in cluster.steer("cancel", runs).stdout
    cluster.await_end(runs)
    status = cluster.steer("status", runs).stdout
    assert "cancelled" in status and "failed" not in status
    assert cluster.make(runs).returncode == 0
    assert cluster.jobs(runs)[6][0] == "enhance"
    cluster.await_end(runs)
    status = cluster.steer("status", runs).stdout
    assert "done" in status and "cancelled" not in status
    assert outputs(cluster.place / runs) == outputs(cluster.place / "here")
    assert not list(cluster.place.rglob("pwned"))


def processes_of(job: str) -> list[int]:
    """Slurm's process that watches a job and would report its end, followed by the processes of the job."""
    watching, found = [], []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(f"slurmstepd: [{job}.".encode()):
                watching.append(int(folder.name))
            elif f"SLURM_JOB_ID={job}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # the process has ended
            continue
    return watching + found


def kill(words: str) -> None:
    """Send SIGKILL to the process with these words in its command line."""
    assert subprocess.run(["pkill", "-KILL", "--full", words]).returncode == 0


def test_a_shard_that_is_killed_is_requeued_and_goes_on(cluster: Cluster) -> None:
    words = {"LIMIT": 80, "NUM_TOKENS": 256, "EPOCHS": 1, "SHARDS": 2}
    assert cluster.make("killed", **words).returncode == 0
    job = cluster.job("killed", "enhance")
    enhanced = cluster.place / "killed" / "sample" / "limit-80" / "enhance" / "tiny_seed0"
    progress = enhanced / ".SAMPLE_cot.shard-1-of-2.jsonl.progress"
    cluster.await_that(lambda: progress.exists() and len(progress.read_bytes().splitlines()) > 2)
    kill("enhance/enhance.py .*/killed/.*--shard 1/2")
    assert {state for states in cluster.await_end("killed").values() for state in states} == {"COMPLETED"}
    assert [cluster.states(job)[task]["Restarts"] for task in "01"] == ["0", "1"]
    log = (cluster.place / "killed").glob("*/*/chains/*/logs/enhance-1.log")
    assert "; continuing with the others" in next(log).read_text()

    alone = cluster.place / "alone" / "SAMPLE_cot.jsonl"
    prompts = enhanced.parent.parent / "prepare" / "SAMPLE.jsonl"
    command = ["--name", cluster.model, "--input", prompts, "--output", alone, "--task_type", "cot_text"]
    command += ["--num_tokens", 256, "--temperature", 0]
    done = cluster.run(sys.executable, str(STAGES["enhance"]), *map(str, command))
    assert done.returncode == 0, done.stderr
    assert (enhanced / "SAMPLE_cot.jsonl").read_bytes() == alone.read_bytes()


def test_a_shard_that_is_killed_again_has_failed(cluster: Cluster) -> None:
    assert cluster.make("again").returncode == 0
    job = cluster.job("again", "enhance")
    for restarts in "01":
        cluster.await_that(lambda restarts=restarts: cluster.states(job)["0"]["Restarts"] == restarts)
        cluster.await_that(lambda: subprocess.run(["pgrep", "--full", "enhance/enhance.py .*/again/"]).returncode == 0)
        kill("enhance/enhance.py .*/again/")
    ended = cluster.await_end("again")
    assert ended[job] == ["FAILED"]
    assert ended[cluster.job("again", "report")] == ["CANCELLED"]
    assert "failed: killed again, perhaps out of memory" in cluster.steer("status", "again").stdout


@pytest.mark.xdist_group("compared")
@pytest.mark.usefixtures("local_chain")
def test_the_node_goes_down_under_a_job(cluster: Cluster) -> None:
    assert cluster.make("dark").returncode == 0
    job = cluster.job("dark", "enhance")
    cluster.await_that(lambda: len(processes_of(cluster.states(job)["0"]["JobId"])) > 3)
    node = cluster.states(job)["0"]["BatchHost"]
    daemon = int((cluster.daemons / "run" / f"slurmd-{node}.pid").read_text())
    for process in (daemon, *processes_of(cluster.states(job)["0"]["JobId"])):  # like a power cut
        os.kill(process, signal.SIGKILL)
    try:
        down = cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")
        assert down.returncode == 0, down.stderr
        assert {state for states in cluster.await_end("dark").values() for state in states} == {"COMPLETED"}
    finally:
        cluster.run("slurmd", "-f", cluster.environment["SLURM_CONF"], "-N", node)
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    record = cluster.states(job)["0"]
    assert record["Restarts"] == "1"
    assert record["BatchHost"] != node
    assert outputs(cluster.place / "dark") == outputs(cluster.place / "here")


@pytest.mark.xdist_group("compared")
@pytest.mark.usefixtures("local_chain")
def test_the_disk_is_full(cluster: Cluster) -> None:
    runs = cluster.place / "full"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", runs], check=True)
    try:
        assert cluster.make("full").returncode == 0
        states = [state for states in cluster.await_end("full").values() for state in states]
        assert states.count("FAILED") == 1
        assert states[-1] == "CANCELLED"
        assert "no space is left on the device; free some" in cluster.steer("status", "full").stdout
        subprocess.run(["mount", "-o", "remount,size=50m", runs], check=True)
        assert cluster.make("full").returncode == 0
        cluster.await_end("full")
        assert outputs(runs) == outputs(cluster.place / "here")
    finally:
        subprocess.run(["umount", "--lazy", runs], check=True)


def test_a_time_limit_that_is_shorter_than_the_job(cluster: Cluster) -> None:
    site = cluster.place / "short.env"
    site.write_text((cluster.place / "site.env").read_text() + "FINETUNE_ARGS+=(--time=2)\n")
    words = {"LIMIT": 80, "EPOCHS": 1, "BATCH": 1, "TASK": "text:70", "SITE": site, "SIGNAL_SECONDS": 60}
    assert cluster.make("short", **words).returncode == 0
    assert {state for states in cluster.await_end("short", 900).values() for state in states} == {"COMPLETED"}
    assert int(cluster.states(cluster.job("short", "finetune"))["0"]["Restarts"]) >= 1
