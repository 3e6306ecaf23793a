"""ATLAS at size: search over a real corpus, the reader on real MMLU questions, and steps of training.

`make perf STAGE=atlas` runs all of it; docs/measurements/atlas.md has the figures. Search is compared with FAISS on the
same vectors; reading with the same model as the reference feeds it: one prompt at a time, each passage padded to
text_maxlength; training with gradient checkpoints and shared-out optimizer states against training without.
"""

import argparse
import json
import os
from typing import Any

from perf.atlas_reading import READ, read
from perf.atlas_search import COMPRESSED, SEARCH, make_index, recall, search
from perf.atlas_training import CHECKPOINTS, WORKERS, train
from perf.measure import HERE, choose, run_alternately, summarize, table, write_results

# Not this folder any more, whose atlas.py and evaluate.py are not what these names mean.

SCENARIOS = {"search-1": SEARCH, "search-64": SEARCH, "search-512": SEARCH, "recall": COMPRESSED, "read": READ}
SCENARIOS |= {"train-checkpoints": CHECKPOINTS, "train-workers": WORKERS, "train-shards": WORKERS}
WORK = {"search": search, "recall": recall, "read": read, "train": train}
UNITS = {"read": "questions/s", "train": "steps/s"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=argparse.SUPPRESS)  # make gives CREAK's folder, which is not needed here
    parser.add_argument("--mmlu", help="folder with MMLU's files (default: $MMLU_DATA, or the hub)")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # the process of one contender
    args = parser.parse_args()
    args.mmlu = args.mmlu or os.environ.get("MMLU_DATA")
    if args.contender:
        print(json.dumps(WORK[args.scenarios.split("-")[0]](args.contender, args)))
        return
    if any(name.startswith(("search", "recall")) for name in args.scenarios.split(",")):
        make_index()
    for name in args.scenarios.split(","):
        print(f"\n{name}", flush=True)
        contenders = choose(SCENARIOS[name], None)
        words = [f"--scenarios={name}", *([f"--mmlu={args.mmlu}"] if args.mmlu else [])]
        measured = run_alternately(
            __spec__.name, contenders, words, 1 if name.startswith(("recall", "train")) else args.repetitions
        )
        found = compare(measured, contenders[0].name)
        rows = summarize(contenders, measured, UNITS.get(name.split("-")[0], "queries/s"), contenders[0].name)
        for row in rows:
            row |= {"scenario": name, **found[row["name"]]}
            print(f"{row['name']}: {found[row['name']]}")
        print(table(rows), flush=True)
        write_results(HERE / "results" / "atlas.json", rows)


def compare(measured: dict[str, list[dict[str, Any]]], first: str) -> dict[str, dict[str, float]]:
    """How far numbers are from the first contender's, and in how many places another passage was found."""
    expected = measured[first][0]
    found: dict[str, dict[str, float]] = {}
    for name, runs in measured.items():
        numbers = [abs(a - b) for a, b in zip(runs[0]["numbers"], expected["numbers"], strict=True)]
        rows = [a != b for a, b in zip(runs[0].get("rows", ()), expected.get("rows", ()), strict=True)]
        found[name] = {"largest_difference": max(numbers), "other_rows": sum(rows), "rows": len(rows)}
        found[name] |= {key: runs[0][key] for key in ("recall", "vectors_bytes") if key in runs[0]}
    for runs in measured.values():
        for run in runs:
            run.pop("numbers"), run.pop("rows", None)
    return found


if __name__ == "__main__":
    main()
