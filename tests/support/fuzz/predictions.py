"""ATLAS's predictions and their questions, which evaluate_mmlu_predictions.py and the report read."""

import random
import sys
from pathlib import Path

from support.atlas_models import write_lines
from support.fuzz.harness import Subject
from support.fuzz.mutation import Files, damage_one
from support.fuzz.pictures import keep_pictures
from support.report_runs import finish

from teacherlm.atlas import scores as scorer
from teacherlm.report import main as report

DOMAINS = ("law", "virology", "philosophy")


def prediction(number: int) -> dict:
    domain = DOMAINS[number % 3]
    options = {letter: f"{letter} of {number}" for letter in "ABCD"}
    asked = {"question": f"{domain} {number}", "options": options, "answer": "B", "dataset": f"{domain}_test"}
    original = {"metadata": {**asked, "is_original": True}, "choice_logits": {"A": 0.0, "B": 1.0}, "passages": []}
    return {"query": "?", "generation": "B", "permutations": [original], "metadata": asked, "choice_probs": {"B": 0.5}}


def example(folder: Path) -> None:
    (folder / "reader").write_text("report score")
    lines = [prediction(number) for number in range(6)]
    for split in ("test", "valid"):
        for step in (2, 4):
            path = write_lines(folder / "runs" / "full" / f"combined_{split}-step-{step}.jsonl", lines)
            finish(path, "atlas evaluate", {"questions": 6, "seconds": 3.0})
    log = [{"step": s, "reader_loss": 2.0 / s, "learning_rates": [1e-4, 1e-5]} for s in (1, 2)]
    write_lines(folder / "runs" / "full" / "log.jsonl", log)
    write_lines(folder / "gold" / "test.jsonl", [line["metadata"] for line in lines])
    keep_pictures(folder / "runs")


def damage(files: Files, draw: random.Random) -> Files:
    names = [name for name in files if name != "reader"]
    return damage_one(files, draw, names) | {"reader": draw.choice(["report", "score", "score"]).encode()}


def read(place: Path) -> None:
    readers = (place / "reader").read_text()
    if "report" in readers:
        sys.argv = ["report.py", str(place / "runs")]
        report.main()
    if "score" not in readers:
        return
    words = ["--predictions_path", place / "runs" / "full", "--gold_path", place / "gold" / "test.jsonl"]
    sys.argv = ["score.py", *map(str, words), "--select-step", str(place / "gold" / "test.jsonl")]
    scorer.main()


SUBJECT = Subject("predictions", example, read, damage, writes=("output", "runs/report"))
