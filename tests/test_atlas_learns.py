"""Retrieval matters, shown by learning: atlas/examples/demo.sh with fewer steps (`make atlas-demo` has them all)."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, read_lines

pytestmark = pytest.mark.timeout(1800)  # some minutes of learning, before the first test
DEMO = ROOT / "atlas" / "examples" / "demo.sh"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("demo")
    environment = os.environ | {"RUNS": str(runs), "PLACES": "200", "READER_STEPS": "250", "RETRIEVER_STEPS": "30"}
    done = subprocess.run(["bash", DEMO], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return runs / "atlas-demo"


def counts(demo: Path, name: str) -> dict[str, float]:
    (manifest,) = (demo / name).glob("test-step-*.manifest.json")
    return json.loads(manifest.read_text())["counts"]


def test_no_place_of_the_test_was_learned_from(demo: Path) -> None:
    train, test = (
        {record["passages"][0]["title"] for record in read_lines(demo / "world" / f"{name}.jsonl")}
        for name in ("train", "test")
    )
    assert len(train) == 100
    assert len(test) == 50
    assert not train & test


def test_retrieval_matters(demo: Path) -> None:
    """Of 300 questions chance is 25 % and its standard error 2.5; closed book stays within four of them."""
    assert 15 <= counts(demo, "closed-book")["debiased_accuracy"] <= 35
    assert counts(demo, "given")["debiased_accuracy"] >= 80
    assert counts(demo, "retriever-learns")["debiased_accuracy"] >= 80


def test_a_retriever_that_learns_from_the_reader_finds_more(demo: Path) -> None:
    frozen, trained = (counts(demo, name)["recall@1"] for name in ("retrieved", "retriever-learns"))
    assert trained >= frozen + 5
