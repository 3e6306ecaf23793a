"""Several users, and files of other users, on a real Slurm: `make test-cluster`."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.files import contents
from support.programs import ROOT
from support.slurm_cluster import SMALL, Cluster, only_log
from support.strangers import AS_NOBODY, give_to_nobody, require_nobody

pytestmark = pytest.mark.cluster
CHAIN = ["bash", str(ROOT / "slurm" / "chain.sh"), "sample"]


@pytest.fixture
def waiting(cluster: Cluster) -> Iterator[None]:
    """Submitted jobs wait until the test, or its end, lets them start."""
    require_nobody()
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        yield
    finally:
        cluster.run("scancel", f"--user={os.getuid()}")
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")


def settings(cluster: Cluster, runs: str) -> Path:
    (file,) = (cluster.place / runs).glob("*/*/chains/*/settings-*.json")
    return file


@pytest.mark.usefixtures("waiting")
def test_a_colleague_s_submission_changes_no_waiting_job(cluster: Cluster) -> None:
    """In a folder to which both users may write."""
    shared = cluster.place / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert cluster.make("shared", TASK="text").returncode == 0
    assert settings(cluster, "shared").stat().st_mode & 0o777 == 0o600
    before = contents(shared)
    words = {**SMALL, "STUDENT": cluster.model, "RUNS": shared, "TASK": "text", "SEED": 1, "HOME": shared}
    theirs = cluster.run(*AS_NOBODY, *CHAIN, **words)
    assert theirs.returncode == 2
    (line,) = theirs.stderr.splitlines()
    assert "you may not write there; choose a folder of your own (RUNS=...)" in line
    assert contents(shared) == before
    another = cluster.make("shared", TASK="text", SEED=1)  # the same user's other chain
    assert another.returncode == 0, another.stderr
    after = contents(shared)
    assert {name for name in before if after[name] != before[name]} <= {"sample/limit-12/.locks/submission"}


@pytest.mark.usefixtures("waiting")
def test_a_job_refuses_settings_that_are_another_user_s(cluster: Cluster) -> None:
    assert cluster.make("taken").returncode == 0
    file = settings(cluster, "taken")
    file.write_text(file.read_text().replace('"LIMIT": "12"', '"LIMIT": "13"'))
    give_to_nobody(file)
    cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    ended = cluster.await_end("taken")
    assert ended[cluster.job("taken", "prepare")] == ["FAILED"]
    assert f"{file}: this file belongs to nobody" in only_log(cluster, "taken", "prepare")
    assert not list((cluster.place / "taken").rglob("SAMPLE.jsonl"))


@pytest.mark.usefixtures("waiting")
def test_a_list_that_names_other_jobs_cancels_none_of_them(cluster: Cluster) -> None:
    """The situation in a run's folder that was copied from another place."""
    assert cluster.make("real", TASK="text").returncode == 0
    job = cluster.job("real", "prepare")
    chain = cluster.place / "copied" / "sample" / "all" / "chains" / "theirs"
    (chain / "logs").mkdir(parents=True)
    (chain / "states").mkdir()
    (chain / "jobs.tsv").write_text(f"prepare\t{job}\t0\t-\tprepare\t{chain}/logs/prepare.log\n")
    assert cluster.steer("cancel", "copied").stdout.endswith("copied: nothing is under way\n")
    assert cluster.state(job) == "PENDING"
    assert f"cancelled jobs {job}" in cluster.steer("cancel", "real").stdout

    (chain / "states" / "prepare-0").write_text(f"failed \x1b[2J\t{job}\t\x07\n")
    (chain / "logs" / "prepare.log").write_text("\x1b]0;owned\x07 error\n")
    status = cluster.steer("status", "copied")
    assert status.returncode == 0, status.stderr
    assert "\\x1b[2J" in status.stdout
    assert "\\x1b]0;owned\\x07 error" in status.stdout
    assert status.stdout.replace("\n", "").isprintable()
