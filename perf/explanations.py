"""Do people's explanations help SmolLM2 on CREAK? Five ways to train on the same claims, three seeds each.

Each run trains on the first 4,000 training claims for 250 steps, and is scored on all 1,371 dev claims. A finished run
is a line in perf/results/explanations.jsonl, and is not made again; the choices of all questions are in it. The table
is made from these lines. docs/measurements/explanations.md has the results.

    python -m perf.explanations --data ../shared/data/creak        # hours; an interrupted run goes on
    python -m perf.explanations --show
"""

import argparse
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perf.measure import HERE
from teacherlm.chain.layout import with_flags
from teacherlm.core import tables
from teacherlm.core.places import ROOT
from teacherlm.report.resampling import difference_of

RESULTS = HERE / "results" / "explanations.jsonl"
COMMON = "--warmup_steps 30 --lr_scheduler_type linear"
WEIGHTS = "--loss_weights answer:0.5,explanation:0.5"
CONTROL = "cot_shuffled, weights"


class Setting(NamedTuple):
    """A way to train. All have the same number of steps: an epoch of the mixture has each claim twice."""

    field: str
    epochs: int
    flags: str


SETTINGS = {
    "text": Setting("text", 2, "--loss_on completion"),
    "cot_tail": Setting("cot_tail", 2, "--loss_on completion"),
    "cot_tail, weights": Setting("cot_tail", 2, WEIGHTS),
    "text and cot_tail": Setting("text:1,cot_tail:1", 1, "--loss_on completion"),
    CONTROL: Setting("cot_shuffled", 2, WEIGHTS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with CREAK's files")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the chains' outputs")
    parser.add_argument("--settings", default="; ".join(SETTINGS), help="some of them, separated by semicolons")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--show", action="store_true", help="only print the table of what is there")
    args = parser.parse_args()
    if not args.show:
        for seed in args.seeds.split(","):
            for name in (one.strip() for one in args.settings.split(";")):
                if not any((one["setting"], one["seed"]) == (name, int(seed)) for one in read_results()):
                    keep(name, int(seed), make(SETTINGS[name], seed, args.data, args.runs))
    print(table(read_results()))


def read_results() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def make(setting: Setting, seed: str, data: Path, runs: Path) -> Path:
    """Train and score, unless that is done; return the folder of the last checkpoint's scores."""
    flags = f"{COMMON} {setting.flags}"
    variables = {
        **{"LAUNCHER": "local", "STUDENT": "smollm2-135m", "TEACHER": "field:explanation", "TASK": setting.field},
        **{"LIMIT": "4000", "EPOCHS": str(setting.epochs), "SEED": seed, "BATCH": "32", "ACCUMULATION": "1"},
        **{"LEARNING_RATE": "1e-4", "SAVE_TOTAL_LIMIT": "1", "FINETUNE_FLAGS": flags},
        **{"CREAK_DATA": str(data), "RUNS": str(runs)},
    }
    command = ["bash", str(ROOT / "slurm" / "chain.sh"), "creak"]
    subprocess.run(command, env={**os.environ, **variables}, check=True)
    field = setting.field.replace(":", "-").replace(",", "-")
    name = f"smollm2-135m_{field}_*{with_flags('finetune', shlex.split(flags))}_seed{seed}"
    [scored] = (runs / "creak" / "limit-4000" / "evaluate").glob(f"{name}/checkpoint-*")
    return scored


def keep(name: str, seed: int, scored: Path) -> None:
    """Append a run's line to the results."""
    result = json.loads((scored / "creak.json").read_text())
    samples = [json.loads(line) for line in (scored / "creak_samples.jsonl").read_text().splitlines()]
    line = {
        "setting": name,
        "seed": seed,
        "step": int(scored.name.removeprefix("checkpoint-")),
        "accuracy": result["value"],
        "choices": "".join(one["choice"] for one in samples),
        "gold": "".join(one["gold"] for one in samples),
    }
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def table(results: list[dict[str, Any]]) -> str:
    """Mean accuracy of each setting, and its difference to `text` and to the control, with intervals."""
    right = {name: matrix(results, name) for name in SETTINGS}
    right = {name: one for name, one in right.items() if one}
    rows = [("setting", "seeds", "accuracy", "minus text", "minus the control")]
    for name, by_seed in right.items():
        mean = np.mean([one.mean() for one in by_seed.values()])
        each = ", ".join(f"{one.mean():.4f}" for one in by_seed.values())
        others = [difference(by_seed, right.get(other, {})) if name != other else "" for other in ("text", CONTROL)]
        rows.append((name, ",".join(map(str, by_seed)), f"{mean:.4f} ({each})", *others))
    return tables.table(rows)


def matrix(results: list[dict[str, Any]], name: str) -> dict[int, np.ndarray]:
    """Seed -> whether each question was answered right, [Q]."""
    found = {one["seed"]: one for one in results if one["setting"] == name}
    return {
        seed: np.array([choice == gold for choice, gold in zip(one["choices"], one["gold"], strict=True)], float)
        for seed, one in sorted(found.items())
    }


def difference(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> str:
    """The mean of one minus that of the other, with the 95 % interval of a comparison of replicates, and p."""
    if not other:
        return "-"
    found_SQ, base_TQ = np.stack(list(one.values())), np.stack(list(other.values()))
    (low, high), p = difference_of(base_TQ, found_SQ)
    return f"{found_SQ.mean() - base_TQ.mean():+.4f} ({low:+.4f} to {high:+.4f}), p {p:.2g}"


if __name__ == "__main__":
    main()
