"""Does a student that reasons before its answer have to be measured by what it writes? A made-up arithmetic, SmolLM2.

The questions ask whether the result of four steps (`Start with 7. Add 5. ...`) is even or odd. Nothing but the
computation tells the answer. The student learns the field cot_first: the steps, and then the letter. It is scored by
the letter's log-likelihood and by the answer that it writes, greedily and with a vote of eight samples.
docs/measurements/written-answers.md has the results.

    python -m perf.written_answers --folder /tmp/sums        # about an hour on two cores; an interrupted run goes on
"""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from teacherlm.core.places import ROOT

YAML = """\
# Made-up arithmetic in four steps (perf/written_answers.py).
title: Sums
splits: {train: train, test: test}
files: {train: train.jsonl, test: test.jsonl}
question: "{{ steps }} Is the result even or odd?"
choices: ["even", "odd"]
answer: "{{ answer }}"
answer_is: index
"""
STEPS, TRAIN, TEST = 4, 800, 200
WORDS = {"+": "Add", "-": "Subtract"}
FLAGS = "--loss_on completion --end_of_text --warmup_steps 10 --lr_scheduler_type linear"
VOTES = ("--num_answers", "8", "--temperature", "0.7")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the questions and all outputs")
    parser.add_argument("--epochs", default="1")
    args = parser.parse_args()
    folder = args.folder.resolve()
    write_benchmark(folder)
    variables = {
        **{"LAUNCHER": "local", "STUDENT": "smollm2-135m", "TEACHER": "field:explanation", "TASK": "cot_first"},
        **{"EPOCHS": args.epochs, "BATCH": "16", "ACCUMULATION": "1", "LEARNING_RATE": "2e-4", "ANSWER": "both"},
        **{"FINETUNE_FLAGS": FLAGS, "EVALUATE_FLAGS": "--num_tokens 96", "SAVE_TOTAL_LIMIT": "1"},
        **{"SUMS_DATA": str(folder / "data"), "RUNS": str(folder / "runs")},
    }
    chain = ["bash", str(ROOT / "slurm" / "chain.sh"), "sums"]
    subprocess.run(chain, cwd=folder, env={**os.environ, **variables}, check=True)
    [checkpoint] = (folder / "runs").glob("sums/all/finetune/*/checkpoint-*")
    tests = folder / "runs" / "sums" / "all" / "prepare" / "test"
    command = [sys.executable, "-P", str(ROOT / "evaluate" / "main.py"), "--model_args", f"pretrained={checkpoint}"]
    command += ["--tasks", "sums", "--datasets", str(tests), "--output_path", str(folder / "votes")]
    subprocess.run([*command, "--answer", "generate", "--num_tokens", "96", *VOTES], cwd=folder, check=True)


def write_benchmark(folder: Path) -> None:
    """The YAML and the questions. They are the same in each run."""
    (folder / "benchmarks").mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "benchmarks" / "sums.yaml").write_text(YAML)
    draw = random.Random(0)
    questions = {question["steps"]: question for question in (make(draw) for _ in range(2 * (TRAIN + TEST)))}
    lines = [json.dumps(question) + "\n" for question in questions.values()]
    (folder / "data" / "train.jsonl").write_text("".join(lines[:TRAIN]))
    (folder / "data" / "test.jsonl").write_text("".join(lines[TRAIN : TRAIN + TEST]))


def make(draw: random.Random) -> dict[str, object]:
    """A question with its explanation."""
    value = draw.randint(1, 9)
    said, shown = [f"Start with {value}."], []
    for _ in range(STEPS):
        number = draw.randint(1, 9)
        sign = draw.choice("+-") if value - number > 0 else "+"
        result = value + number if sign == "+" else value - number
        said.append(f"{WORDS[sign]} {number}.")
        shown.append(f"{value} {sign} {number} = {result}.")
        value = result
    shown.append(f"{value} is {('even', 'odd')[value % 2]}.")
    return {
        "steps": " ".join(said),
        "answer": value % 2,
        "explanation": " ".join(shown),
    }


if __name__ == "__main__":
    main()
