"""On a real Slurm, two jobs on two nodes write one output. The second waits, and names the node of the first."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.enhancing import prompts
from support.files import read_lines
from support.finetuning import flags, read_log, weights
from support.programs import STAGES
from support.slurm_cluster import Cluster, start

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("named")]
TEXTS = ["--task_type", "cot_text", "--num_tokens", 100, "--dtype", "float32", "--batch_size", 1]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, each with a network and a host name of its own."""
    yield from start(tmp_path_factory.mktemp("locks"), NAMED="1", NODES="2")


class Jobs:
    """A command that runs as one job on each node."""

    def __init__(self, cluster: Cluster, folder: Path, command: list[object]):
        self.cluster, self.folder = cluster, folder
        folder.mkdir()
        self.script = folder / "job.sh"
        words = " ".join(f"'{word}'" for word in [sys.executable, *command])
        self.script.write_text(f"#!/bin/bash\nexport OMP_NUM_THREADS=1\nexec {words}\n")
        self.jobs: list[str] = []

    def submit(self, node: str) -> None:
        asked = [f"--nodelist={node}", "--cpus-per-task=1", "--mem=1500M", f"--output={self.log(node)}"]
        done = self.cluster.run("sbatch", "--parsable", *asked, str(self.script))
        assert done.returncode == 0, done.stderr
        self.jobs.append(done.stdout.strip())

    def signal(self, node: int, name: str) -> None:
        done = self.cluster.run("scancel", "--batch", f"--signal={name}", self.jobs[node])
        assert done.returncode == 0, done.stderr

    def log(self, node: str) -> Path:
        return self.folder / f"{node}.log"

    def await_that(self, true: Callable[[], object]) -> None:
        self.cluster.await_that(true, seconds=300)

    def end(self) -> dict[str, str]:
        """Wait until the jobs have ended; return node -> what its job printed."""
        self.await_that(lambda: self.cluster.have_ended(self.jobs))
        said = {node: self.log(node).read_text() for node in ("node1", "node2")}
        states = [self.cluster.state(job) for job in self.jobs]
        assert states == ["COMPLETED", "COMPLETED"], said
        return said


def test_two_nodes_enhance_at_the_same_instant(named: Cluster) -> None:
    records = prompts(named.place / "SAMPLE.jsonl", 12)
    command = [STAGES["enhance"], "--name", named.model, "--input", records, *TEXTS, "--output"]
    alone = named.place / "alone.jsonl"
    done = named.run(sys.executable, *map(str, [*command, alone]))
    assert done.returncode == 0, done.stderr
    output = named.place / "enhance" / "SAMPLE_cot.jsonl"
    jobs = Jobs(named, output.parent, [*command, output])
    for node in ("node1", "node2"):
        jobs.submit(node)
    said = jobs.end()
    assert output.read_bytes() == alone.read_bytes()
    assert sorted("done already" in text for text in said.values()) == [False, True]
    assert not list(output.parent.glob(".*"))


def test_a_finetuning_waits_for_that_of_another_node(named: Cluster, prepared: Path) -> None:
    command = [STAGES["finetune"], *flags(named.model, prepared / "SAMPLE", "FOLDER"), "--num_train_epochs", 40]
    runs = [named.place / name / "run" for name in ("alone", "finetune")]
    alone, both = ([run if word == "FOLDER" else word for word in command] for run in runs)
    done = named.run(sys.executable, *map(str, alone))
    assert done.returncode == 0, done.stderr
    jobs = Jobs(named, runs[1].parent, both)
    jobs.submit("node1")
    jobs.await_that((runs[1] / "log.jsonl").exists)
    jobs.signal(0, "STOP")  # during training, until the other job has started to wait
    assert not (runs[1] / "manifest.json").exists()
    jobs.submit("node2")
    jobs.await_that(lambda: jobs.log("node2").exists() and "waiting for" in jobs.log("node2").read_text())
    jobs.signal(0, "CONT")
    said = jobs.end()
    assert f"waiting for {runs[1]}, held by node1 pid " in said["node2"]
    assert "done already" in said["node2"]
    assert read_log(runs[1]) == read_log(runs[0])
    assert weights(runs[1]) == weights(runs[0])
    assert len(read_lines(runs[1] / "log.jsonl")) == len({record["step"] for record in read_log(runs[0])})
