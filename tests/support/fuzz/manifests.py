"""The files that stages keep beside their outputs: manifests, progress files, and the list of a chain's jobs."""

import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from support.files import sample_claims
from support.fuzz.harness import Subject, changed_folders, files_in
from support.fuzz.mutation import Files, damage_one

from teacherlm.chain import steer
from teacherlm.core import manifests
from teacherlm.core.records import write_records
from teacherlm.dataset import main as data_prepare
from teacherlm.enhance import main as enhance
from teacherlm.enhance import merge
from teacherlm.scoring.result_names import require_name, scored_models

COUNT = 6
EXAMPLE: Files = {}


def call(main: Callable[[], int | None], *words: object) -> None:
    sys.argv = [f"{main.__module__}.py", *map(str, words)]
    if status := main():
        raise SystemExit(status)


def prepare(place: Path) -> None:
    words = ["--benchmark", "creak", "--output_dir", place / "run", "--test_dir", place / "run" / "tests"]
    call(data_prepare.main, *words, "--data", place / "source", "--list_missing")
    call(data_prepare.main, *words, "--data", place / "source")


def explain(place: Path) -> None:
    words = ["--name", "field:explanation", "--input", place / "run" / "CREAK.jsonl", "--task_type", "cot_text"]
    words += ["--output", place / "run" / "CREAK_cot.jsonl"]
    call(enhance.main, *words, "--list_missing", "--shard", "0/2")
    for shard in ("0/2", "1/2"):
        call(enhance.main, *words, "--shard", shard)
    put_together = ["--input", place / "run" / "CREAK.jsonl", "--output", place / "run" / "CREAK_cot.jsonl"]
    call(merge.main, *put_together, "--shards", 2, "--list_missing")
    call(merge.main, *put_together, "--shards", 2)


def score(place: Path) -> None:
    """Read what evaluate/main.py reads before it loads a model."""
    for path in sorted((place / "results").rglob("*.manifest.json")):
        manifest = manifests.read_manifest(path)
        known = (manifest or {}).get("inputs", {}).get("model")
        described = {"model": manifests.describe(place / "source", known)}
        manifests.reasons_not_done(manifest, "evaluate", {"limit": None}, described)
        scored_models(path.parent)
        require_name(path.parent, {"identity": "one", "place": "two"}, "f" * 64)


def say(place: Path) -> None:
    steer.read_queue = dict  # Slurm has nothing to do
    call(steer.main, "status", "--runs", place / "runs")


def example(folder: Path) -> None:
    claims = [claim | {"explanation": f"Reason {n}."} for n, claim in zip(range(COUNT), sample_claims())]
    for name in ("train", "dev"):
        (folder / "source").mkdir(exist_ok=True)
        write_records(folder / "source" / f"{name}.json", claims)
    prepare(folder)
    explain(folder)
    prepare(folder)
    result = folder / "results" / "tiny" / "creak.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    outputs = {"result": manifests.describe(result)}
    inputs = {"model": manifests.describe(folder / "source") | {"identity": "one", "place": "two"}}
    written = {"arguments": {"limit": None}, "inputs": inputs, "outputs": outputs, "counts": {}, "started": 0.0}
    manifests.write_manifest(manifests.manifest_of(result), stage="evaluate", **written)
    (result.parent / ".model").write_text('{"identity": "one", "place": "two", "sha256": "0"}\n')
    run = folder / "runs" / "creak" / "all"
    chain = run / "chains" / "one"
    (chain / "states").mkdir(parents=True)
    rows = [
        ("prepare", "11", "0", "-", "w", f"{chain}/logs/prepare.log"),
        ("enhance", "12", "0-1", "11", "enhance-t", f"{chain}/logs/enhance-%a.log"),
    ]
    (chain / "jobs.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (chain / "states" / "prepare-0").write_text("failed (1)\t11\n")
    shutil.copytree(folder / "run", run / "enhance" / "t", ignore=shutil.ignore_patterns("CREAK", "tests"))
    progress = folder / "run" / ".CREAK_cot.shard-0-of-2.jsonl.progress"
    progress.write_text('{"work": {"seed": 0}}\n{"key": 0, "text": " a", "tokens": 2, "prompt": "0"}\n')
    EXAMPLE.update(files_in(folder))


def damage(files: Files, draw: random.Random) -> Files:
    endings = ("manifest.json", ".progress", ".model", "jobs.tsv")
    names = [name for name in files if name.endswith(endings) or "/states/" in name]
    return damage_one(files, draw, names)


def read(place: Path) -> None:
    stages = {"run": (prepare, explain, prepare), "results": (score,), "runs": (say,)}
    for folder in changed_folders(place, EXAMPLE):
        for stage in stages.get(folder, ()):
            stage(place)


SUBJECT = Subject("manifests", example, read, damage, writes=("run",))
