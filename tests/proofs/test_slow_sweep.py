"""Every causal architecture of transformers through all stages.

`make prove ONLY=sweep` writes the table of docs/reference/architectures.md.

Some 15 minutes. An interrupted sweep goes on: an architecture's outcomes are kept with the code's digest.
"""

import dataclasses
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import pytest
from support.programs import ROOT
from support.sweep import Outcome, Sweep, row_of, write_table
from support.tiny_architectures import Architecture, architectures

from teacherlm.core.files import whole_file
from teacherlm.core.places import cache_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OWN = ("sweep.py", "plain_reference.py", "tiny_architectures.py", "tiny_architectures.yaml")


@pytest.fixture(scope="module")
def kept() -> Path:
    """A folder that outlasts a test; other code, or another transformers, begins anew."""
    code = [file for part in ("enhance", "finetune", "evaluate", "teacherlm") for file in (ROOT / part).rglob("*.py")]
    code = [*sorted(code), *(ROOT / "tests" / name for name in OWN)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in code) + version("transformers").encode())
    folder = cache_folder() / "proofs" / digest.hexdigest()[:16] / "sweep"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return Sweep(tmp_path_factory.mktemp("sweep"))


def outcomes_file(kept: Path, architecture: Architecture) -> Path:
    return kept / f"{architecture.name}.json"


@pytest.mark.parametrize("architecture", architectures(), ids=lambda one: one.name)
def test_an_architecture_is_computed_exactly_or_refused(sweep: Sweep, kept: Path, architecture: Architecture) -> None:
    file = outcomes_file(kept, architecture)
    if not file.is_file():
        outcomes = sweep.try_all(architecture)
        with whole_file(file) as out:
            json.dump({stage: dataclasses.asdict(outcome) for stage, outcome in outcomes.items()}, out)
    found = read_outcomes(file)
    assert [outcome for outcome in found.values() if outcome.verdict == "wrong"] == []


def test_the_table_is_written(kept: Path) -> None:
    """The last one: of all architectures, those that are wrong too."""
    files = {one.name: outcomes_file(kept, one) for one in architectures()}
    missing = [name for name, file in files.items() if not file.is_file()]
    assert missing == [], "run all of them: make prove ONLY=sweep"
    write_table({name: row_of(read_outcomes(file)) for name, file in files.items()})


def read_outcomes(file: Path) -> dict[str, Outcome]:
    return {stage: Outcome(**outcome) for stage, outcome in json.loads(file.read_text(encoding="utf-8")).items()}
