"""Results of scoring and the other files in a run's folder, which the report, the comparison and the table read."""

import csv
import random
import re
import sys
from pathlib import Path

from support.fuzz.harness import Subject
from support.fuzz.mutation import Files, damage_one
from support.fuzz.pictures import keep_pictures
from support.report_runs import write_result, write_run

from teacherlm.report import compare, table
from teacherlm.report import main as report

NAME = "tiny_text_seed0"


def example(folder: Path) -> None:
    """A small run with texts, a finetuning with two scored checkpoints, and jobs that failed."""
    run = write_run(
        folder / "run", {"cot": [f"Sentence {n} explains it. So the answer is (A)." for n in range(4)]}, [NAME]
    )
    for name, seed in (("tiny/creak", 0), (f"{NAME}/checkpoint-3/creak", 3), (f"{NAME}/checkpoint-6/creak", 6)):
        write_result(run, name, seed, questions=6)
    (folder / "reader").write_text("table compare report")
    (run / "chains" / "one" / "states").mkdir(parents=True)
    (run / "chains" / "one" / "states" / "finetune-0").write_text("failed (1)\t12\n")
    (run / "enhance" / "teacher_seed0" / "CREAK_error.failures.jsonl").write_text(
        '{"record": 0, "line": 1, "reason": "no"}\n'
    )
    (run / "enhance" / "teacher_seed0" / ".CREAK_error.jsonl.progress").write_text('{"work": {}}\n{"key": 0}\n')
    keep_pictures(run)


def damage(files: Files, draw: random.Random) -> Files:
    """Damage a file that the report reads, so neither datasets nor prepared records."""
    names = [name for name in files if name.startswith("run/") and not name.endswith(".arrow")]
    names = [name for name in names if not name.startswith("run/prepare/test/")]
    return damage_one(files, draw, names) | {"reader": draw.choice(["table", "compare", "report"]).encode()}


def read(place: Path) -> None:
    run = place / "run"
    readers = (place / "reader").read_text()
    if "table" in readers:
        task = [
            "--task",
            "creak",
            "--untrained",
            run / "evaluate" / "tiny",
            "--log",
            run / "finetune" / NAME / "log.jsonl",
        ]
        sys.argv = ["table.py", *map(str, task), "--checkpoints", str(run / "evaluate" / NAME)]
        table.main()
    if "compare" in readers:
        sys.argv = ["compare.py", str(run), "--output", str(place / "output")]
        compare.main()
        check_tables(place / "output")
    if "report" in readers:
        sys.argv = ["report.py", str(run)]
        report.main()


def check_tables(folder: Path) -> None:
    """Check that no cell of text is a formula for a spreadsheet, and that each row of a Markdown table is one line."""
    for file in folder.glob("*.csv"):
        for row in csv.reader(file.open(encoding="utf-8", newline="")):
            for cell in row:
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) or is_number(cell), (file.name, cell)
    for file in folder.glob("*.md"):
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in file.read_text(encoding="utf-8").split("\n") if line]
        assert len(set(bars)) == 1, (file.name, bars)


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == "-"
    return True


SUBJECT = Subject("results", example, read, damage, writes=("output", "run/report"))
