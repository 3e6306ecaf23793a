"""A submission that ends early leaves nothing in the queue of a real Slurm: `make test-cluster`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.programs import ROOT, program
from support.slurm_cluster import SMALL, Cluster

pytestmark = pytest.mark.cluster
CHAIN = ["bash", str(ROOT / "slurm" / "chain.sh")]
STAGES = ("prepare", "enhance", "merge", "finetune", "evaluate", "report")
ATLAS = {
    "atlas-zeroshot": ("prepare", "evaluate", "score", "report"),
    "atlas-5-shot": ("prepare", "train", "score", "report"),
    "atlas-full": ("prepare", "train", "score", "report"),
}


@pytest.fixture
def sbatch(cluster: Cluster, tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """Put an sbatch before Slurm's in PATH, which behaves differently for one stage: sbatch("merge", 'exit 1')."""

    def write(stage: str, script: str) -> dict[str, str]:
        own = tmp_path / "bin" / "sbatch"
        own.parent.mkdir(exist_ok=True)
        real = shutil.which("sbatch")
        own.write_text(
            f'#!/bin/bash\ncase "$*" in *"slurm/job.sh {stage} "*) sbatch={real}; {script} ;; esac\nexec {real} "$@"\n'
        )
        own.chmod(0o755)
        return {"PATH": f"{own.parent}:{cluster.environment['PATH']}"}

    return write


@pytest.fixture
def quiet(cluster: Cluster) -> Iterator[None]:
    """The queue is empty before and after the test. `down` keeps submitted jobs from starting."""
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    try:
        cluster.await_that(lambda: not queue(cluster))  # cancelled jobs of an earlier test may still be ending
        yield
    finally:
        cluster.run("scancel", f"--user={os.getuid()}")
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")


def queue(cluster: Cluster) -> list[str]:
    return cluster.run("squeue", "--noheader", "--format=%F %j").stdout.splitlines()


def chains(runs: Path) -> list[Path]:
    return list(runs.rglob("jobs.tsv"))


def case(*values: str, usual: bool) -> Any:
    """A case of a test. Unusual cases take long, and run only with `make test-cluster WHOLE=1`."""
    return pytest.param(*values, marks=[] if usual else [pytest.mark.slow])


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("stage", [case(stage, usual=stage in ("prepare", "finetune", "report")) for stage in STAGES])
def test_a_refusal_of_any_stage_leaves_nothing(cluster: Cluster, sbatch: Callable, stage: str) -> None:
    """Slurm refuses the stage, because the partition does not exist."""
    refused = cluster.make(f"refused-{stage}", **sbatch(stage, 'exec "$sbatch" --partition=none "$@"'))
    assert refused.returncode == 2
    assert f"chain.sh: error: Slurm refused the stage {stage}" in refused.stderr
    assert queue(cluster) == []
    assert chains(cluster.place / f"refused-{stage}") == []
    cancelled = [line for line in refused.stderr.splitlines() if "cancelled the submitted jobs" in line]
    assert [len(line.partition("jobs ")[2].split()) for line in cancelled] == [n for n in [STAGES.index(stage)] if n]


@pytest.mark.usefixtures("quiet")
def test_after_a_refusal_the_same_call_submits_all(cluster: Cluster, sbatch: Callable) -> None:
    refused = sbatch("evaluate", 'exec "$sbatch" --partition=none "$@"')
    assert cluster.make("again-whole", **refused).returncode == 2
    assert cluster.make("again-whole").returncode == 0
    rows = cluster.jobs("again-whole")
    assert [row[0] for row in rows] == list(STAGES)
    assert cluster.make("again-whole", TASK="all", **refused).returncode == 2
    assert sorted({line.split()[0] for line in queue(cluster)}) == sorted(row[1] for row in rows)
    assert len(cluster.jobs("again-whole")) == len(STAGES)
    cluster.steer("cancel", "again-whole")


def atlas(cluster: Cluster, data: Path) -> dict[str, str]:
    for name in ("models/atlas/tiny", "indices/atlas/wiki/tiny"):
        (data / name).mkdir(parents=True, exist_ok=True)
    return {"DATA_DIR": str(data), "SIZE": "tiny", "RUNS": str(data / "runs")}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("setting", "stage"),
    [
        case(setting, stage, usual=(setting, stage) == ("atlas-5-shot", "score"))
        for setting in ATLAS
        for stage in ATLAS[setting]
    ],
)
def test_a_refusal_of_any_stage_of_atlas_leaves_nothing(
    cluster: Cluster, sbatch: Callable, tmp_path: Path, setting: str, stage: str
) -> None:
    site = tmp_path / "site.env"
    site.write_text("ATLAS_ARGS=(--gres=none --ntasks-per-node=1 --cpus-per-task=1 --mem=1500M --time=10)\n")
    site.write_text(site.read_text() + "CPU_ARGS=(--cpus-per-task=1 --mem=1500M --time=10)\n")
    words = atlas(cluster, tmp_path) | {"SITE": str(site)} | sbatch(stage, 'exec "$sbatch" --partition=none "$@"')
    refused = cluster.run(*CHAIN, setting, **words)
    assert refused.returncode == 2, refused.stderr
    assert f"chain.sh: error: Slurm refused the stage {stage}" in refused.stderr
    assert queue(cluster) == []
    assert chains(tmp_path) == []


@pytest.mark.usefixtures("quiet")
def test_a_job_whose_number_got_lost_is_cancelled_too(cluster: Cluster, sbatch: Callable) -> None:
    """The situation when Slurm's answer is late: sbatch fails, although the job was submitted."""
    lost = sbatch("finetune", '"$sbatch" "$@" >/dev/null; exit 1')
    assert cluster.make("lost", **lost).returncode == 2
    assert queue(cluster) == []
    assert chains(cluster.place / "lost") == []


@pytest.mark.usefixtures("quiet")
def test_a_controller_that_goes_away_while_it_submits_is_said_with_the_jobs_that_are_left(
    cluster: Cluster, sbatch: Callable, tmp_path: Path
) -> None:
    """From the third stage on, Slurm's programs find no controller. The jobs in the list stay there."""
    gone = sbatch("merge", f"touch {tmp_path}/gone; exit 1")
    for name in ("squeue", "scancel"):
        own = tmp_path / "bin" / name
        own.write_text(f'#!/bin/bash\n[[ ! -e {tmp_path}/gone ]] || exit 1\nexec {shutil.which(name)} "$@"\n')
        own.chmod(0o755)
    result = cluster.make("gone", **gone)
    assert result.returncode == 2
    jobs = [row[1] for row in cluster.jobs("gone")]
    assert len(jobs) == 2
    assert f"jobs {' '.join(jobs)} are still in the queue; when Slurm answers again, run: scancel" in result.stderr
    assert "cancelled jobs" in cluster.steer("cancel", "gone").stdout
    assert queue(cluster) == []


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_a_submission_that_is_ended_leaves_nothing(
    cluster: Cluster, sbatch: Callable, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """Ctrl-C also reaches sbatch while it works. After a SIGKILL, the next call cleans up."""
    runs = f"ended-{number.name}"
    slow = sbatch("merge", f'touch {tmp_path}/begun; sleep 2; "$sbatch" "$@"; exit')
    words = {**SMALL, "STUDENT": cluster.model, "TEACHER": cluster.model, "RUNS": cluster.place / runs, **slow}
    environment = {**cluster.environment, **{name: str(value) for name, value in words.items()}}
    process = subprocess.Popen(
        [*CHAIN, "sample"], cwd=cluster.place, env=environment, stdout=-3, stderr=-3, process_group=0
    )
    cluster.await_that((tmp_path / "begun").exists)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(60) == status
    if number == signal.SIGKILL:
        time.sleep(3)  # its sbatch succeeds
        assert len(queue(cluster)) == 3
        refused = cluster.make(runs)
        assert refused.returncode == 2
        assert "which a killed submission left in the queue" in refused.stderr
        assert "cancelled jobs" in cluster.steer("cancel", runs).stdout
    else:
        assert chains(cluster.place / runs) == []
    assert queue(cluster) == []


@pytest.mark.usefixtures("quiet")
def test_a_disk_that_is_full_while_it_submits_leaves_nothing(cluster: Cluster, sbatch: Callable) -> None:
    runs = cluster.place / "full-disk"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", runs], check=True)
    try:
        fill = f"dd if=/dev/zero of={runs}/ballast bs=4k status=none 2>/dev/null"
        result = cluster.make("full-disk", **sbatch("prepare", fill))
        assert result.returncode == 2
        assert "jobs.tsv: cannot be written; is the disk full?" in result.stderr
        assert queue(cluster) == []
        again = cluster.make("full-disk")
        assert again.returncode == 2
        assert again.stderr.count("\n") == 1
        assert "cannot be written; is the disk full?" in again.stderr
        (runs / "ballast").unlink()
        assert cluster.make("full-disk").returncode == 0
        cluster.steer("cancel", "full-disk")
    finally:
        subprocess.run(["umount", "--lazy", runs], check=True)


@pytest.mark.usefixtures("quiet")
def test_a_reader_that_goes_away_cancels_nothing_that_is_submitted(cluster: Cluster) -> None:
    """`make sample | head -1`."""
    words = {**SMALL, "STUDENT": cluster.model, "TEACHER": cluster.model, "RUNS": cluster.place / "piped"}
    subprocess.run(
        f"bash {ROOT}/slurm/chain.sh sample | head -n 1",
        shell=True,
        cwd=cluster.place,
        env={**cluster.environment, **{name: str(value) for name, value in words.items()}},
        check=True,
    )
    assert len(queue(cluster)) == len(STAGES)
    cluster.steer("cancel", "piped")


def test_a_controller_that_does_not_answer_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    """Slurm's programs and its configuration exist, but no process listens at the controller's port."""
    text = Path(cluster.environment["SLURM_CONF"]).read_text()
    conf = tmp_path / "slurm.conf"
    conf.write_text("".join(f"{line}\n" for line in text.splitlines() if "SlurmctldPort" not in line))
    conf.write_text(conf.read_text() + "SlurmctldPort=9\nMessageTimeout=2\n")
    result = cluster.make("nobody", SLURM_CONF=conf)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line == (
        "chain.sh: error: Slurm does not answer (slurm_load_jobs error: Unable to contact slurm controller (connect "
        "failure)); LAUNCHER=local runs the chain on this machine"
    )
    assert not (cluster.place / "nobody").exists()


def test_slurm_s_programs_without_its_configuration_are_one_line(cluster: Cluster, tmp_path: Path) -> None:
    """The situation after `apt install slurm-client`, in which squeue prints several lines."""

    def ask(*command: object) -> subprocess.CompletedProcess:
        words = {"STUDENT": cluster.model, "RUNS": cluster.place / "nobody"}
        result = cluster.run("env", "--unset=SLURM_CONF", *map(str, command), **words)
        assert result.returncode == 2
        return result

    (line,) = ask(*CHAIN, "sample").stderr.splitlines()
    assert line.startswith("chain.sh: error: Slurm does not answer (")
    assert line.endswith("); LAUNCHER=local runs the chain on this machine")
    (cluster.place / "nobody/sample/all/chains/x").mkdir(parents=True)
    (cluster.place / "nobody/sample/all/chains/x/jobs.tsv").touch()
    for command in ("status", "cancel"):
        (line,) = ask(sys.executable, *program("steer"), command).stderr.splitlines()
        assert line.startswith("teacherlm steer: error: Slurm does not answer (")
    site = ask(sys.executable, *program("site"), "--output", tmp_path / "site.env")
    (line,) = site.stderr.splitlines()
    assert "Slurm does not answer (" in line
