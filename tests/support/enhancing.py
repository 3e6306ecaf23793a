"""Shared parts of the tests of enhance.py: prompts, progress and failures."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

from support.files import read_lines, sample_claims
from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.prompt_sets import load_prompts


def prompts(path: Path, count: int) -> Path:
    """A file of records with prompts in the format of data_prepare.py."""
    benchmark, asked = load_benchmark("sample"), load_prompts()
    records = [benchmark.prepare(claim, "here", asked) for claim in itertools.islice(sample_claims(), count)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def edit_record(path: Path, number: int, change: Callable[[dict], None]) -> None:
    records = read_lines(path)
    change(records[number - 1])
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def progress_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.progress")
