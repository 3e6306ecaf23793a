"""Files of claims (JSON lines or a JSON list, compressed or not), which data_prepare.py reads."""

import gzip
import json
import random
import zlib
from pathlib import Path

import datasets
from backports import zstd
from support.files import contents, sample_claims
from support.fuzz.harness import Subject
from support.fuzz.mutation import Files, damage_of, mutate

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.prompt_sets import load_prompts
from teacherlm.catalog.sources import read_split
from teacherlm.core.errors import UserError
from teacherlm.core.records import read_records
from teacherlm.dataset.main import prepare

MUCH = b"a" * 2**20
"""A part of a line that is longer than the memory and compressed to a few hundred kilobytes."""
WHOLE = 4
"""Every WHOLE-th damage runs all of data_prepare's `prepare`. The others run only its reading."""
CREAK, PROMPTS = load_benchmark("creak"), load_prompts()


def example(folder: Path) -> None:
    claims = [json.dumps(claim, ensure_ascii=False) for _, claim in zip(range(6), sample_claims())]
    (folder / "data").mkdir()
    (folder / "data" / "train.json").write_text("\n".join(claims) + "\n", encoding="utf-8")
    (folder / "data" / "dev.json").write_text(claims[0] + "\n", encoding="utf-8")


def damage(files: Files, draw: random.Random) -> Files:
    content = files.pop("data/train.json")
    if draw.random() < 0.002:
        ending, pack = draw.choice([(".gz", gzip.compress), (".zst", zstd.compress)])
        return files | {f"data/train.json{ending}": pack(draw.choice([content, b'{"sentence": "'])) + pack(MUCH) * 1500}
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content = mutate(content, draw)
    ending, pack = draw.choice([("", None)] * 6 + [(".gz", gzip.compress), (".zst", zstd.compress)])
    name = f"data/train.json{ending}"
    if pack:
        content = pack(content)
        content = damage_of(name)(content, draw) if draw.random() < 0.5 else content
    return files | {name: content}


def read(place: Path) -> None:
    """Check that a refusal leaves no files, and that everything that is read is also written."""
    data, output = place / "data", place / "output"
    if sum(zlib.crc32(file.read_bytes()) for file in data.iterdir()) % WHOLE:
        for where, sample in read_split(CREAK, "train", data):
            CREAK.prepare(sample, where, PROMPTS)
        return
    try:
        prepare(CREAK, PROMPTS, data, output, output / "tests", None)
    except UserError:
        assert contents(output) == {}
        raise
    samples = [CREAK.prepare(sample, where, PROMPTS) for where, sample in read_split(CREAK, "train", data)]
    assert [record for _, record in read_records(output / "CREAK.jsonl")] == samples
    assert len(datasets.load_from_disk(str(output / "CREAK"))["train"]) == len(samples)


SUBJECT = Subject("records", example, read, damage)
