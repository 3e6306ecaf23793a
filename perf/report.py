"""How quick a page with 10,000 samples is: building it, its first paint in Chromium, a search, a filter, a sort.

CREAK's own training claims with people's explanations as the teacher's texts (--data DIR), or made-up ones, go through
the real scripts; two students' answers to 1,000 questions are drawn. The page is opened from the disk in headless
Chromium, anew for each repetition. `make perf STAGE=report` runs it; docs/measurements/report.md has the figures.
"""

import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perf.measure import HERE, write_results
from perf.scale import claim
from teacherlm.core.errors import UserError
from teacherlm.core.flags import Parser
from teacherlm.core.places import ROOT
from teacherlm.core.programs import run
from teacherlm.core.records import read_records, write_records

RUN = "drawn_cot_tail_explanation_seed0"
ACTIONS = {
    "search": "find('search').value = 'because the'; find('search').dispatchEvent(new Event('input'))",
    "search for a letter": "find('search').value = 'e'; find('search').dispatchEvent(new Event('input'))",
    "filter by flag": "find('flag').value = 'cut'; find('flag').dispatchEvent(new Event('change'))",
    "filter by answer": "find('outcome').value = 'flipped'; find('outcome').dispatchEvent(new Event('change'))",
    "filter by length": "find('min').value = '100'; find('min').dispatchEvent(new Event('input'))",
    "sort by length": "find('sort').value = 'longest'; find('sort').dispatchEvent(new Event('change'))",
}
"""What a user does -> how; each is timed until the rows are laid out, then undone."""


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="a folder with CREAK's train.json and dev.json (default: made-up claims)"
    )
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise UserError("no Chromium here: bash tests/support/browser/install.sh installs Debian's")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "creak" / "all"
        make_run(folder, args.data, args.samples)
        started = time.monotonic()
        program("report", folder)
        built = time.monotonic() - started
        page = folder / "report" / "index.html"
        size = page.stat().st_size
        measured = [open_page(chromium, page) for _ in range(args.repetitions)]
    rows = [row("build the page", [1000 * built], args.samples)]
    rows += [row(action, [times[action] for times in measured], args.samples) for action in measured[0]]
    write_results(HERE / "results" / "report.json", [{**one, "page_bytes": size} for one in rows])
    print(f"a page of {size / 1e6:.1f} MB with {args.samples} training samples and 1,000 questions")
    print("| what | ms | spread |\n|---|---|---|")
    for one in rows:
        print(f"| {one['what']} | {one['value']:.0f} | {min(one['values']):.0f} - {max(one['values']):.0f} |")


def row(what: str, values: list[float], samples: int) -> dict[str, Any]:
    return {"what": what, "samples": samples, "value": statistics.median(values), "unit": "ms", "values": values}


def make_run(folder: Path, data: Path | None, samples: int) -> None:
    claims = {
        name: list(itertools.islice(claims_of(data, name), size)) for name, size in (("train", samples), ("dev", 1000))
    }
    source = folder.parent / "claims"
    source.mkdir(parents=True)
    for name, found in claims.items():
        write_records(source / f"{name}.json", found)
    prepared, enhanced = folder / "prepare", folder / "enhance" / "explanation_seed0"
    program("prepare", "--data", source, "--output_dir", prepared, "--test_dir", prepared / "test")
    words = ("--name", "field:explanation", "--input", prepared / "CREAK.jsonl", "--task_type", "cot_text")
    program("enhance", *words, "--output", enhanced / "CREAK_cot.jsonl")
    program("prepare", "--output_dir", enhanced, "--test_dir", prepared / "test", "--post_process")
    for name in ("drawn", f"{RUN}/checkpoint-1"):
        write_answers(folder / "evaluate" / name, claims["dev"])


def claims_of(data: Path | None, name: str) -> Iterator[dict[str, Any]]:
    if data is None:
        return (claim(name, number) for number in itertools.count())
    return (record for _, record in read_records(data / f"{name}.json"))


def write_answers(folder: Path, claims: list[dict[str, Any]]) -> None:
    """Answers that are drawn, in the files of evaluate/main.py."""
    draw = random.Random(str(folder.name))
    question = (
        "Q: Determine the correctness of the following sentence. {sentence} (A) True (B) False A: The answer is ("
    )
    samples = []
    for number, one in enumerate(claims):
        gold, choice = "A" if one["label"] == "true" else "B", draw.choice("AB")
        asked = {"doc_id": number, "prompt": question.format(**one), "gold": gold, "choice": choice}
        samples.append({**asked, "acc": float(gold == choice)})
    folder.mkdir(parents=True)
    write_records(folder / "creak_samples.jsonl", samples)
    value = statistics.mean(sample["acc"] for sample in samples)
    result = {"task": "creak", "metric": "acc", "value": value, "n": len(samples), "interval_95": [value, value]}
    (folder / "creak.json").write_text(json.dumps(result), encoding="utf-8")


def program(name: str, *words: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run(
        [sys.executable, "-P", "-m", "teacherlm", name, *map(str, words)], check=True, env=environment, stdout=2
    )


def open_page(chromium: str, page: Path) -> dict[str, float]:
    """Milliseconds of the first paint, of all until the browser is idle, and of each action."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(page.as_uri())
        paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        times = {"first paint": tab.evaluate(paint)}
        times["loaded"] = tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        for name, action in ACTIONS.items():
            times[name] = tab.evaluate(
                f"""() => {{
                    const began = performance.now();
                    {action};
                    document.body.offsetHeight; // the layout of the new rows
                    const took = performance.now() - began;
                    for (const id of ['search', 'flag', 'outcome', 'min']) find(id).value = '';
                    find('sort').value = 'order';
                    update();
                    return took;
                }}"""
            )
        browser.close()
    return times


if __name__ == "__main__":
    run(main)
