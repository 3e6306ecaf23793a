"""Time and memory of the stages that only read and write records: do they grow with the number of records?

Synthetic claims in CREAK's fields go through data_prepare.py, merge.py (of four shards, which are written here in the
teacher's place) and data_prepare.py --post_process: the real scripts, each in a process of its own.
`make perf STAGE=scale` runs it; docs/measurements/scale.md has the figures.
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

SHARDS = 4
TESTED = 1000
"""Claims of the test split; of the training split there are as many as asked for."""

TEXT = "the a river city band novel king treaty engine comet often never only was is wrote crossed over near first"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="10000,100000,1000000", help="how many, with commas")
    parser.add_argument("--folder", type=Path, help="where the files lie for the time (default: the temporary folder)")
    parser.add_argument("--data", help=argparse.SUPPRESS)  # make passes it to every measurement
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)  # the process of one step
    args = parser.parse_args()
    if args.step:
        started = time.perf_counter()
        STEPS[args.step](args.folder, int(args.records))
        print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time()}))
        return
    rows = []
    for records in map(int, args.records.split(",")):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rows += [row for step in STEPS for row in [measure(step, Path(folder), records)] if step in SHOWN]
    write_results(HERE / "results" / "scale.json", rows)
    print(table(rows))


def measure(step: str, folder: Path, records: int) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", __spec__.name, "--step", step]
    result, peak = run_once([*command, "--records", str(records), "--folder", str(folder)])
    row = {"records": records, "stage": step, "value": records / result["seconds"], "unit": "records/s", **result}
    print(f"{records} {step}: {result['seconds']:.1f} s, peak {peak / 2**20:.0f} MiB", file=sys.stderr, flush=True)
    return {**row, "peak_memory_bytes": peak}


def table(rows: list[dict[str, Any]]) -> str:
    """Seconds of the processor beside those of the clock: where other work runs, the clock shows that work too."""
    lines = ["| records | stage | seconds | of them CPU | records/s | peak memory |", "|---|---|---|---|---|---|"]
    for row in rows:
        seconds = f"{row['seconds']:.1f} | {row['cpu_seconds']:.1f}"
        peak = f"{row['peak_memory_bytes'] / 2**20:.0f} MiB"
        lines.append(f"| {row['records']:,} | {row['stage']} | {seconds} | {row['value']:,.0f} | {peak} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------- the steps, in the order of their files


def write_claims(folder: Path, records: int) -> None:
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


def prepare(folder: Path, records: int) -> None:
    run_script("data_prepare.py", "--data", folder, "--output_dir", folder / "out", "--test_dir", folder / "test")


def write_shards(folder: Path, records: int) -> None:
    """What enhance.py writes with --shard I/4, the teacher's texts made up."""
    from teacherlm.core import manifests
    from teacherlm.core.records import write_records
    from teacherlm.enhance.job import shard_path, shard_records

    source, output = folder / "out" / "CREAK.jsonl", folder / "out" / "CREAK_cot.jsonl"
    described = manifests.describe(source)

    def enhanced(shard: tuple[int, int]) -> Iterator[dict[str, Any]]:
        for index, _, record in shard_records(source, shard):
            text = f" First, {claim('cot', index)['explanation']} So the answer is ({record['label']})."
            yield {**record, "cot": text, "all": record["cot_text"] + text}

    for index in range(SHARDS):
        path = shard_path(output, (index, SHARDS))
        written = write_records(path, enhanced((index, SHARDS)))
        manifests.write_manifest(
            manifests.manifest_of(path),
            stage="enhance",
            arguments={"task_type": "cot_text", "shard": [index, SHARDS]},
            inputs={"records": described, "teacher": {"path": "none", "sha256": "none"}},
            outputs={"enhanced": manifests.describe(path)},
            counts={"records": written, "failures": 0},
            started=time.time(),
        )


def merge(folder: Path, records: int) -> None:
    out = folder / "out"
    run_script("merge.py", "--input", out / "CREAK.jsonl", "--output", out / "CREAK_cot.jsonl", "--shards", SHARDS)


def post_process(folder: Path, records: int) -> None:
    run_script("data_prepare.py", "--post_process", "--output_dir", folder / "out", "--test_dir", folder / "test")
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
    "shards": write_shards,
    "merge": merge,
    "post-process": post_process,
}
SHOWN = ("prepare", "merge", "post-process")


if __name__ == "__main__":
    main()
