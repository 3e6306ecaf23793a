"""1,000 damaged files of claims: each is read and prepared, or ends in one line that names the file."""

import gzip
import json
import random
from pathlib import Path

import datasets
import pytest
from backports import zstd
from conftest import contents, sample_claims
from data_prepare import prepare
from fuzz.mutation import mutate

from teacherlm.benchmarks import load_benchmark
from teacherlm.errors import UserError, one_line
from teacherlm.records import read_records
from teacherlm.sources import read_split

FILES, WHOLE = 1000, 3
"""How many files are read; every third goes through the whole of data_prepare's `prepare`."""


def claims() -> list[bytes]:
    return [json.dumps(claim, ensure_ascii=False).encode() for _, claim in zip(range(6), sample_claims())]


def damaged(number: int, folder: Path) -> Path:
    """A folder of CREAK's kind whose train.json (or its archive) is damaged."""
    draw = random.Random(number)
    content = b"\n".join(claims()) + b"\n"
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content = mutate(content, draw)
    ending, pack = draw.choice([("", None)] * 6 + [(".gz", gzip.compress), (".zst", zstd.compress)])
    if pack:
        content = pack(content)
        content = mutate(content, draw) if draw.random() < 0.5 else content
    file = folder / f"train.json{ending}"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("part", range(10))
def test_a_damaged_file_is_prepared_or_named_in_one_line(tmp_path: Path, part: int) -> None:
    creak = load_benchmark("creak")
    data, output = tmp_path / "data", tmp_path / "output"
    data.mkdir()
    (data / "dev.json").write_bytes(claims()[0])
    outcomes = {"read": 0, "refused": 0}
    for number in range(part, FILES, 10):
        file = damaged(number, data)
        try:
            samples = [creak.prepare(sample, where) for where, sample in read_split(creak, "train", data)]
            outcomes["read"] += 1
        except UserError as error:
            assert_one_line(error, file)
            samples = None
            outcomes["refused"] += 1
        if number // 10 % WHOLE == 0:
            here = output / str(number)
            here.mkdir(parents=True)
            try:
                prepare(creak, data, here, here / "tests", None)
            except UserError as error:
                assert_one_line(error, file)
                assert contents(here) == {}, number
            else:
                assert [record for _, record in read_records(here / "CREAK.jsonl")] == samples, number
                assert len(datasets.load_from_disk(str(here / "CREAK"))["train"]) == len(samples), number
        file.unlink()
    assert min(outcomes.values()) > 10, outcomes


def assert_one_line(error: UserError, file: Path) -> None:
    line = one_line(error)
    assert str(file) in line
    assert len(line) < 600
    assert line.encode()  # a terminal can show it
