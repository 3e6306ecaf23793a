"""Measure how time and memory of the stages around the teacher grow with the number of records.

Synthetic claims with CREAK's fields pass through data_prepare.py, enhance.py with a made-up teacher (four shards),
merge.py and data_prepare.py --post_process. These are the real scripts, each in a separate process. With --texts above
1 the teacher writes several texts for each record, and all of them become rows of the dataset. `make perf STAGE=scale`
runs it; docs/measurements/scale.md has the results.
"""

import argparse
import contextlib
import json
import random
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perf.measure import HERE, ROOT, run_once, write_results
from teacherlm.enhance import work
from teacherlm.runtime.generation import Completion, Prompt

SHARDS = 4
TESTED = 1000
"""Number of claims in the test split. --records is the number of claims in the training split."""

TEXT = "the a river city band novel king treaty engine comet often never only was is wrote crossed over near first"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="10000,100000,1000000", help="numbers of records, separated by commas")
    parser.add_argument("--texts", type=int, default=1, help="number of texts per record")
    parser.add_argument("--folder", type=Path, help="a folder for temporary files (default: the temporary folder)")
    parser.add_argument("--data", help=argparse.SUPPRESS)  # make passes it to every measurement
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)  # the process of one step
    args = parser.parse_args()
    if args.step:
        started = time.perf_counter()
        STEPS[args.step](args.folder, int(args.records), args.texts)
        print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time()}))
        return
    rows = []
    for records in map(int, args.records.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            measured = [measure(step, Path(folder), records, args.texts) for step in STEPS]
            rows += [row for row in measured if row["stage"] in SHOWN]
    write_results(HERE / "results" / ("scale.json" if args.texts == 1 else "scale_of_texts.json"), rows)
    print(table(rows))


def measure(step: str, folder: Path, records: int, texts: int) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", __spec__.name, "--step", step]
    words = ["--records", str(records), "--texts", str(texts), "--folder", str(folder)]
    result, peak = run_once([*command, *words])
    row = {
        "records": records,
        "texts": texts,
        "stage": step,
        "value": records / result["seconds"],
        **result,
    }
    print(f"{records} {step}: {result['seconds']:.1f} s, peak {peak / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    return {**row, "unit": "records/s", "peak_memory_bytes": peak}


def table(rows: list[dict[str, Any]]) -> str:
    """A table of the rows. It has CPU seconds too, because other work on the machine lengthens the elapsed seconds."""
    lines = [
        "| records | texts of each | stage | seconds | of them CPU | records/s | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = f"{row['seconds']:.1f} | {row['cpu_seconds']:.1f}"
        peak = f"{row['peak_memory_bytes'] / 2**20:.0f} MiB"
        lines.append(
            f"| {row['records']:,} | {row['texts']} | {row['stage']} | {seconds} | {row['value']:,.0f} | {peak} |"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------- the steps, in the order of their files


def write_claims(folder: Path, records: int, texts: int) -> None:
    for name, count in (("train", records), ("dev", TESTED)):
        with open(folder / f"{name}.json", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(claim(name, number)) + "\n" for number in range(count))


def claim(split: str, number: int) -> dict[str, Any]:
    words = random.Random(f"{split} {number}")
    return {
        "ex_id": f"{split}_{number}",
        "sentence": " ".join(words.choices(TEXT.split(), k=19)) + ".",
        "explanation": " ".join(words.choices(TEXT.split(), k=19)) + ".",
        "label": words.choice(["true", "false"]),
        "entity": " ".join(words.choices(TEXT.split(), k=2)),
        "en_wiki_pageid": str(number),
        "entity_mention_loc": [[0, words.randrange(1, 20)]],
    }


def prepare(folder: Path, records: int, texts: int) -> None:
    run_script("data_prepare.py", "--data", folder, "--output_dir", folder / "out", "--test_dir", folder / "test")


class MadeUpTeacher:
    """Writes a text at once, so that the time is that of everything around a teacher."""

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion]:
        for prompt in prompts:
            text = f" First, {claim(f'cot {prompt.number}', prompt.index)['explanation']} So the answer is (A)."
            yield Completion(prompt, text, 60, 24, "stop")


def enhance(folder: Path, records: int, texts: int) -> None:
    work.make_engine = lambda *_: (MadeUpTeacher(), "with a made-up teacher")
    out = folder / "out"
    words = ["--name", "smollm2-135m", "--input", out / "CREAK.jsonl", "--output", out / "CREAK_cot.jsonl"]
    words += ["--task_type", "cot_text", "--num_completions", texts]
    for index in range(SHARDS):
        run_script("enhance.py", *words, "--shard", f"{index}/{SHARDS}")


def merge(folder: Path, records: int, texts: int) -> None:
    out = folder / "out"
    run_script("merge.py", "--input", out / "CREAK.jsonl", "--output", out / "CREAK_cot.jsonl", "--shards", SHARDS)


def post_process(folder: Path, records: int, texts: int) -> None:
    words = ["--post_process", "--output_dir", folder / "out", "--test_dir", folder / "test"]
    run_script("data_prepare.py", *words, *(["--explanations", "all"] if texts > 1 else []))
    shutil.rmtree(folder / "out")


def run_script(name: str, *words: object) -> None:
    sys.argv = [name, *map(str, words)]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            runpy.run_path(str(ROOT / "enhance" / name), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise


STEPS = {
    "claims": write_claims,
    "prepare": prepare,
    "enhance": enhance,
    "merge": merge,
    "post-process": post_process,
}
SHOWN = ("prepare", "enhance", "merge", "post-process")


if __name__ == "__main__":
    main()
