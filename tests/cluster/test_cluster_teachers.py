"""A chain on a real Slurm with a teacher for each kind of explanation: each teacher is a job of its own."""

import json
from pathlib import Path

import pytest
from support.slurm_cluster import Cluster
from support.tiny_models import make_teachers

pytestmark = pytest.mark.cluster
KINDS = ("cot", "error", "fundamental")


def texts_of(runs: Path) -> dict[str, bytes]:
    files = sorted(runs.glob("*/*/enhance/of-*/SAMPLE_*.jsonl"))
    return {file.name: file.read_bytes() for file in files if "quality" not in file.name}


def test_each_kind_is_by_its_own_teacher_in_a_job_of_its_own(cluster: Cluster) -> None:
    teachers = make_teachers(cluster.model, cluster.place / "models", KINDS)
    settings = {**teachers, "TASK": "full_tail", "EPOCHS": 1, "LIMIT": 8}
    result = cluster.make("three", **settings)
    assert result.returncode == 0, result.stderr
    jobs = {row[0]: row[1] for row in cluster.jobs("three")}
    assert {f"enhance-{kind}" for kind in KINDS} <= jobs.keys()
    assert {state for states in cluster.await_end("three").values() for state in states} == {"COMPLETED"}
    [run] = (cluster.place / "three").glob("*/*/enhance")
    digests = set()
    for kind in KINDS:
        manifest = json.loads((run / f"of-{kind}_seed0" / f"SAMPLE_{kind}.manifest.json").read_text())
        assert manifest["inputs"]["teacher"]["path"] == str(teachers[f"TEACHER_{kind.upper()}"])
        digests.add(manifest["inputs"]["teacher"]["sha256"])
    assert len(digests) == 3

    assert cluster.make("three-here", LAUNCHER="local", **settings).returncode == 0
    here = texts_of(cluster.place / "three-here")
    assert len(here) == 3
    assert texts_of(cluster.place / "three") == here
