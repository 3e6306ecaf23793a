"""Work on several nodes of a real Slurm, each with its own address and name: `make test-cluster`."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.atlas_models import make_passages, make_small_mmlu, make_tiny_bert, make_tiny_t5, write_lines
from support.files import read_lines
from support.programs import ROOT, STAGES
from support.scoring import words
from support.shards import results
from support.slurm_cluster import Cluster, curve, only_log, start

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("named")]
WORDS = {"LIMIT": 24, "EPOCHS": 2, "TASK": "text"}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, each with a network of its own."""
    yield from start(tmp_path_factory.mktemp("named"), NAMED="1", NODES="2")


@pytest.fixture(scope="module")
def one(named: Cluster) -> Path:
    """The log of a finetuning in one process, which other finetunings have to equal."""
    assert named.make("one", **WORDS, BATCH=4, LAUNCHER="local").returncode == 0
    return finetuned(named, "one")


def finetuned(named: Cluster, runs: str) -> Path:
    """The log of a chain's finetuning."""
    return next((named.place / runs).glob("*/*/finetune/*/log.jsonl"))


def site_of(named: Cluster, name: str, *more: str) -> Path:
    """A site.env with further lines."""
    site = named.place / f"{name}.env"
    site.write_text("\n".join([(named.place / "site.env").read_text(), *more, ""]))
    return site


def test_two_nodes_learn_what_one_does(named: Cluster, one: Path) -> None:
    site = site_of(named, "two", "FINETUNE_ARGS+=(--nodes=2 --ntasks-per-node=1)")
    assert named.make("two", **WORDS, BATCH=2, SITE=site).returncode == 0
    assert {state for states in named.await_end("two").values() for state in states} == {"COMPLETED"}

    log = only_log(named, "two", "finetune")
    assert "at most 4 per step (batches of 2, 2 processes)" in log
    assert "the processes run on node1 node2" in log
    assert_equal(finetuned(named, "two"), one)


def assert_equal(log: Path, expected: Path) -> None:
    """Two finetunings logged the same losses at the same steps, and have the same checkpoints."""
    found, wanted = curve(log), curve(expected)
    assert [step for step, _ in found] == [step for step, _ in wanted]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted], abs=1e-4)
    checkpoints = [sorted(path.name for path in one.parent.glob("checkpoint-*")) for one in (log, expected)]
    assert checkpoints[0] == checkpoints[1]
    assert len(checkpoints[0]) == WORDS["EPOCHS"]


def test_a_run_of_one_node_goes_on_with_two(named: Cluster, one: Path) -> None:
    """With ZeRO-2: two processes on one node, then two on each of two nodes."""
    flags = {"BATCH": 2, "NUM_GPUS": 2, "FINETUNE_FLAGS": "--deepspeed zero2"}
    site = site_of(named, "grow", "FINETUNE_ARGS+=(--nodes=2 --ntasks-per-node=2)")
    logs = []
    for epochs, more in ((1, {}), (WORDS["EPOCHS"], {"SITE": site})):
        done = named.make("grow", **{**WORDS, **flags, **more, "EPOCHS": epochs})
        assert done.returncode == 0, done.stderr
        assert {state for states in named.await_end("grow").values() for state in states} == {"COMPLETED"}
        logs.append(only_log(named, "grow", "finetune"))
    first, second = logs
    assert "at most 4 per step (batches of 2, 2 processes)" in first
    assert "the processes run on node1 node1 node2 node2" in second
    assert "each of 4 processes computes 1 batch of 1 per step in place of 1 of 2" in second
    assert "checkpoint-6; its states were saved by DeepSpeed (ZeRO-2) in 2 processes" in second
    assert_equal(finetuned(named, "grow"), one)


def test_atlas_on_two_nodes_predicts_what_it_does_on_one(named: Cluster, shared_data: Path) -> None:
    """Each node has half of the index and reads half of the questions."""
    place = named.place / "atlas"
    site = named.place / "atlas.env"
    two = "ATLAS_ARGS=(--nodes=2 --ntasks-per-node=1 --gres=none --mem=1500M --cpus-per-task=1 --time=10)"
    site.write_text((named.place / "site.env").read_text() + two + "\n")
    words = {
        "MMLU_DATA": make_small_mmlu(place / "mmlu", shared_data / "mmlu"),
        "READER": make_tiny_t5(place / "t5"),
        "RETRIEVER": make_tiny_bert(place / "bert"),
        "PASSAGES": write_lines(place / "passages.jsonl", make_passages(41)),
        "MODEL_PATH": "none",
        "PRECISION": "fp32",
        "SIZE": "tiny",
        "FLAGS": "--n_context 2 --text_maxlength 128 --generation_max_length 4 --per_gpu_batch_size 8",
        "TEACHERLM_CACHE": place / "cache",
        "SITE": site,
    }
    chain = ("bash", str(ROOT / "slurm" / "chain.sh"), "atlas-zeroshot")
    for name, launcher in (("one", "local"), ("two", "slurm")):
        data = {"DATA_DIR": place / name, "RUNS": place / name / "runs", "LAUNCHER": launcher}
        result = named.run(*chain, **words, **data)
        assert result.returncode == 0, result.stderr
    states = named.await_end("atlas/two/runs")
    assert {state for of_job in states.values() for state in of_job} == {"COMPLETED"}
    log = only_log(named, "atlas/two/runs", "evaluate")
    assert "41 passages to embed with 2 workers" in log
    results = "experiments/tiny-mmlu-zeroshot/combined_test-step-0.jsonl"
    one, other = (read_lines(place / name / results) for name in ("one", "two"))
    assert len(one) == len(other) == 16
    for line, before in zip(other, one):
        assert line["metadata"] == before["metadata"] and line["passages"] == before["passages"]
        assert line["choice_probs"] == pytest.approx(before["choice_probs"], abs=1e-4)
    assert result.returncode == 0 and "all" in only_log(named, "atlas/two/runs", "score").splitlines()[-1]


def test_an_array_of_four_tasks_scores_what_one_process_does(named: Cluster, prepared: Path) -> None:
    place = named.place / "token_weights"
    place.mkdir()
    script = place / "shard.sh"
    script.write_text('#!/bin/bash\nexec "$@" --shard "$SLURM_ARRAY_TASK_ID/4"\n')
    array = ["sbatch", "--wait", "--array=0-3", "--cpus-per-task=1", "--mem=1500M", f"--output={place}/%a.log", script]
    for submit, name in (([], "one"), (array, "four")):
        flags = words(named.model, "sample", prepared / "tests", place / name, "--batch_size", 3)
        done = named.run(*map(str, [*submit, sys.executable, STAGES["evaluate"], *flags]))
        assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in place.glob("*.log"))
    assert len(list(place.glob("*.log"))) == 4
    assert results(place / "four") == results(place / "one")
