"""Finetuning over several nodes, each with its own address and name, on a real Slurm: `make test-cluster`."""

from collections.abc import Iterator

import pytest
from slurm_cluster import Cluster, curve, only_log, start

pytestmark = pytest.mark.cluster
WORDS = {"LIMIT": 24, "EPOCHS": 2, "TASK": "text"}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, each in a network of its own."""
    yield from start(tmp_path_factory.mktemp("named"), NAMED="1", NODES="2")


def test_two_nodes_learn_what_one_does(named: Cluster) -> None:
    site = named.place / "two.env"
    asked = "FINETUNE_ARGS+=(--nodes=2 --ntasks-per-node=1)"
    site.write_text((named.place / "site.env").read_text() + asked + "\n")
    assert named.make("one", **WORDS, BATCH=4, LAUNCHER="local").returncode == 0
    assert named.make("two", **WORDS, BATCH=2, SITE=site).returncode == 0
    assert {state for states in named.await_end("two").values() for state in states} == {"COMPLETED"}

    log = only_log(named, "two", "finetune")
    assert "4 a step (2 x 1 accumulated x 2 processes)" in log
    assert "its processes run on node1 node2" in log
    logs = [next((named.place / runs).glob("*/*/finetune/*/log.jsonl")) for runs in ("one", "two")]
    one, two = map(curve, logs)
    assert [step for step, _ in one] == [step for step, _ in two]
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-4)
    checkpoints = [sorted(path.name for path in log.parent.glob("checkpoint-*")) for log in logs]
    assert checkpoints[0] == checkpoints[1]
    assert len(checkpoints[0]) == WORDS["EPOCHS"]
