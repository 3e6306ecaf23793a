"""Runs with several seeds, samples of lm-eval beside them, and results that are exported in its format."""

import json
import random
import sys
from pathlib import Path

from support.fuzz.harness import Subject
from support.fuzz.mutation import Files, damage_one
from support.fuzz.pictures import keep_pictures
from support.fuzz.results import check_tables
from support.replicates import write_seed, write_texts_and_dataset
from support.report_runs import write_run

from teacherlm.report import compare, lm_eval_export
from teacherlm.report import main as report

NAME = "tiny_text"
SAMPLES = "samples_creak_2026-01-31T12-00-00.000001.jsonl"


def example(folder: Path) -> None:
    """Two seeds whose texts were drawn with their seeds, and the answers of another model to the same questions."""
    run = write_run(folder / "run", None, ())
    for seed in (0, 1):
        write_seed(run, NAME, seed, dataset=write_texts_and_dataset(run, seed), questions=6)
    answered = run / "evaluate" / f"{NAME}_seed0" / "checkpoint-6" / "creak_samples.jsonl"
    lines = []
    for sample in map(json.loads, answered.read_text().splitlines()):
        requests = {f"gen_args_{n}": {"arg_0": sample["prompt"], "arg_1": letter} for n, letter in enumerate("AB")}
        about = {"doc_id": sample["doc_id"], "doc": {"question": sample["prompt"]}, "arguments": requests}
        lines.append(json.dumps({**about, "filter": "none", "metrics": ["acc"], "acc": sample["acc"]}))
    (folder / "other").mkdir()
    (folder / "other" / SAMPLES).write_text("\n".join(lines) + "\n")
    (folder / "reader").write_text("compare report export")
    keep_pictures(run)


def damage(files: Files, draw: random.Random) -> Files:
    """Damage what replicates and lm-eval's files are read from: manifests, results and samples."""
    parts = ("run/finetune/", "run/enhance/", f"run/evaluate/{NAME}")
    if draw.random() < 0.5:
        return damage_one(files, draw, [f"other/{SAMPLES}"]) | {"reader": b"compare"}
    names = [name for name in files if name.startswith(parts)]
    return damage_one(files, draw, names) | {"reader": draw.choice(["compare", "report", "export"]).encode()}


def read(place: Path) -> None:
    readers = (place / "reader").read_text()
    if "compare" in readers:
        sys.argv = ["compare.py", str(place / "run"), str(place / "other"), "--output", str(place / "output")]
        compare.main()
        check_tables(place / "output")
    if "report" in readers:
        sys.argv = ["report.py", str(place / "run")]
        report.main()
    if "export" in readers:
        scored = place / "run" / "evaluate" / f"{NAME}_seed0" / "checkpoint-6"
        sys.argv = ["lm_eval_export.py", str(scored), "--output", str(place / "output")]
        lm_eval_export.main()


SUBJECT = Subject("replicates", example, read, damage, writes=("output", "run/report"))
