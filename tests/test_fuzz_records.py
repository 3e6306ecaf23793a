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

from teacherlm.benchmarks import load_benchmark
from teacherlm.errors import UserError, one_line
from teacherlm.records import read_records
from teacherlm.sources import read_split

FILES, WHOLE = 1000, 3
"""How many files are read; every third goes through the whole of data_prepare's `prepare`."""

BYTES = b'\x00\n\r\t "\\{}[]:,0e-.uN\x1e\x7f\x85\xa8\xc3\xe2\xed\xef\xff'
VALUES = [
    *(
        "null",
        "true",
        "[]",
        "{}",
        '""',
        "0",
        "-0",
        "-0.0",
        "1e999",
        "-1e-999",
        "NaN",
        "-Infinity",
        "1.5",
        "[[0, 8], null]",
    ),
    *(
        "9" * 400,
        "9" * 5000,
        str(2**63),
        str(-(2**63)),
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
        '"\\u2028"',
        "'x'",
    ),
    *(
        "[" * 40 + "]" * 40,
        "[" * 3000,
        '{"a":' * 3000,
        '{"_type": "Value"}',
        '{"a": {}, "a": []}',
        '[1, "a"]',
        '["a", null]',
    ),
    *(
        '{"": 1}',
        '"' + "é" * 100_000 + '"',
        '"{{ 7 }}"',
        '"true"',
        '"false"',
        "[NaN]",
        "00",
        "1_000",
        "0x1",
        "\ufeff",
        "+1",
    ),
]


def claims() -> list[bytes]:
    return [json.dumps(claim, ensure_ascii=False).encode() for _, claim in zip(range(6), sample_claims())]


def mutate(content: bytes, draw: random.Random) -> bytes:
    """One change somewhere: of bytes, of a field, of lines, of the whole file."""
    at = draw.randrange(len(content) + 1)
    end = min(len(content), at + draw.choice([1, 1, 2, 10, 100, 1000]))
    lines = content.split(b"\n")
    line = draw.randrange(len(lines))
    changes = {
        "flip": lambda: content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :],
        "put": lambda: content[:at] + bytes(draw.choices(BYTES, k=draw.randrange(1, 5))) + content[at:],
        "drop": lambda: content[:at] + content[end:],
        "double": lambda: content[:end] + content[at:],
        "cut": lambda: content[:at],
        "value": lambda: b"\n".join([*lines[:line], mutate_field(lines[line], draw), *lines[line + 1 :]]),
        "move": lambda: b"\n".join(draw.sample(lines, len(lines))),
        "empty lines": lambda: content.replace(b"\n", draw.choice([b"\n\n", b"\r\n", b"\r", b"", b" \n\t"])),
        "file": lambda: draw.choice(
            [b"\xef\xbb\xbf" + content, content.decode("latin-1").encode("utf-16"), b"[" + content]
        ),
        "list": lambda: b"[" + b",".join(filter(None, lines)) + b"]",
    }
    return changes[draw.choice([*changes, "value", "value", "value"])]()


def mutate_field(line: bytes, draw: random.Random) -> bytes:
    """Another value or another name for one of the fields."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(record, dict) or not record:
        return line
    name = draw.choice(list(record))
    new = draw.choice(VALUES)
    parts = [f"{json.dumps(key)}: {new if key == name else json.dumps(value)}" for key, value in record.items()]
    other = draw.choice(["sentence", "label", "text", "all", "cot_tail", "question", "", "x" * 1000, "\ud800", "a\0"])
    action = draw.choice(["value", "value", "add", "remove", "rename"])
    if action == "add":
        parts.insert(draw.randrange(len(parts) + 1), f"{json.dumps(other)}: {new}")
    elif action != "value":
        record = {
            other if key == name else key: value for key, value in record.items() if action == "rename" or key != name
        }
        parts = [json.dumps(record)[1:-1]]
    return ("{" + ", ".join(parts) + "}").encode()


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
