"""Retrieval matters, shown by learning: atlas/examples/demo.sh with fewer steps (`make atlas-demo` has them all).

`make test` has so few that the script runs to its end, a loss falls and passages are found. `make prove ONLY=retriev`
has enough for the reader to learn to read.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.files import read_lines
from support.programs import ROOT, warm_python

DEMO = ROOT / "atlas" / "examples" / "demo.sh"
STAGES = ("closed-book", "given", "retrieved", "retriever-learns")


def run_demo(runs: Path, **settings: int) -> Path:
    environment = os.environ | {"RUNS": str(runs), "PYTHON": warm_python()}
    environment |= {name: str(value) for name, value in settings.items()}
    done = subprocess.run(["bash", DEMO], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (runs / "said").write_text(done.stdout)
    return runs / "atlas-demo"


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_demo(tmp_path_factory.mktemp("short"), PLACES=20, READER_STEPS=18, RETRIEVER_STEPS=2)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_demo(tmp_path_factory.mktemp("demo"), PLACES=200, READER_STEPS=250, RETRIEVER_STEPS=30)


def counts(demo: Path, name: str) -> dict[str, float]:
    (manifest,) = (demo / name).glob("test-step-*.manifest.json")
    return json.loads(manifest.read_text())["counts"]


def test_no_place_of_the_test_was_learned_from(short: Path) -> None:
    train, test = (
        {record["passages"][0]["title"] for record in read_lines(short / "world" / f"{name}.jsonl")}
        for name in ("train", "test")
    )
    assert len(train) == 10
    assert len(test) == 5
    assert not train & test


def test_the_demo_ends_with_the_scores_of_its_four_stages(short: Path) -> None:
    """With 120 passages, chance finds the right one in 0.8 % of cases. 18 steps teach only the form of answers."""
    said = (short.parent / "said").read_text().partition("== unseen places")[2]
    for name in STAGES:
        assert f"{counts(short, name)['debiased_accuracy']:.1f}" in said
    (line,) = read_lines(short / "given" / "log.jsonl")
    assert line["reader_loss"] < 4  # the mean of all steps; random weights have more than 5
    for name in ("retrieved", "retriever-learns"):
        assert counts(short, name)["recall@1"] >= 80


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_retrieval_matters(demo: Path) -> None:
    """With 300 questions, chance is 25 % with a standard error of 2.5. Closed book stays within four of them."""
    assert 15 <= counts(demo, "closed-book")["debiased_accuracy"] <= 35
    assert counts(demo, "given")["debiased_accuracy"] >= 80
    assert counts(demo, "retriever-learns")["debiased_accuracy"] >= 80


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_retriever_that_learns_from_the_reader_finds_more(demo: Path) -> None:
    frozen, trained = (counts(demo, name)["recall@1"] for name in ("retrieved", "retriever-learns"))
    assert trained >= frozen + 5
