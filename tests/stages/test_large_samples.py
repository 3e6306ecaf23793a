"""Small files of samples that stand for large ones: rows, lists and fields are limited, and odd names are refused."""

import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from support.bounded import bounded
from support.new_benchmarks import mistake
from support.programs import STAGES, only_error

from teacherlm.catalog.sources import read_csv, read_json
from teacherlm.core.json_files import has_more_parts, load_json
from teacherlm.core.records import read_records
from teacherlm.dataset.dataset_folder import gather_types

YAML = (
    "title: X\nlocal: .\nsplits: {{train: train, test: validation}}\nfiles: {{train: '{0}', test: '{1}'}}\n"
    "question: '{{{{ sentence }}}}'\nchoices: [a, b]\nanswer: '{{{{ label }}}}'\nlabels: {{'true': A, 'false': B}}\n"
)
CLAIM = {"sentence": "x", "label": "true"}


def prepared(folder: Path, train: str, test: str, more: str = "") -> list[object]:
    """The arguments of a command that prepares a benchmark with two files."""
    (folder / "x.yaml").write_text(YAML.format(train, test) + more)
    words = [STAGES["data_prepare"], "--benchmark", folder / "x.yaml", "--output_dir", folder / "out"]
    return [*words, "--test_dir", folder / "tests"]


def packed(path: Path, begin: bytes, many: bytes, times: int, end: bytes) -> None:
    """A compressed file with repeated bytes. A larger file beside it allows it to unpack to many bytes."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin)
        for _ in range(times // 100_000):
            file.write(many * 100_000)
        file.write(end)


@pytest.mark.parametrize(
    ("name", "begin", "many", "times", "end", "said"),
    [
        (
            "t.csv.gz",
            b"sentence,label\n",
            b",",
            62_000_000,
            b"\n",
            "line 2: a row of at most 67,108,864 characters and",
        ),
        (
            "t.csv.gz",
            b"",
            b",",
            62_000_000,
            b"\n",
            "line 1: a row of at most 67,108,864 characters and 1,000,000 commas",
        ),
        (
            "t.json.gz",
            b'[{"sentence":"x","label":"true","l":[',
            b'"",',
            9_000_000,
            b'""]}]',
            "more than 8,000,000 v",
        ),
        ("t.json.gz", b'{"sentence":"x","label":"true","l":[', b"1,", 32_000_000, b"1]}\n", "more than 4,000,000 val"),
    ],
)
def test_a_small_archive_of_many_parts(
    tmp_path: Path, name: str, begin: bytes, many: bytes, times: int, end: bytes, said: str
) -> None:
    packed(tmp_path / name, begin, many, times, end)
    (tmp_path / "d.json").write_text(json.dumps(CLAIM))
    done = bounded(prepared(tmp_path, name.removesuffix(".gz"), "d.json"), 120, 1024)
    assert said in only_error(done)


def test_a_quote_that_is_missing_is_said_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacherlm.catalog.sources.LINE_BYTES", 100)
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "x,y\n" * 100 + '"x,y\n' + "x,y\n" * 100)
    assert mistake(lambda: list(read_csv(path, None))).startswith(f"{path}, line 126: a row of at most 100 characters")


def test_a_row_at_the_limits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], ["x," * 200_000, "1\n2\n"], ["x" * 2_000_000, ""], ["y", "z"]])
    samples = [sample for _, sample in read_csv(path, None)]
    assert samples == [
        {"a": "x," * 200_000, "b": "1\n2\n"}, {"a": "x" * 2_000_000, "b": ""}, {"a": "y", "b": "z"}
    ]  # fmt: skip


def test_commas_in_texts_are_no_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_more_parts(r'["a,,,,\",,,,\\", ",,,"]', 1)
    assert has_more_parts(r'["a,,,,\",,,,\\", ",,,", 1]', 1)
    assert not has_more_parts('["a,,,,', 1)
    monkeypatch.setattr("teacherlm.core.json_files.JSON_PARTS", 3)
    path = tmp_path / "x.json"
    path.write_text('{"a": ",,,,,,", "b": 1, "c": 2}')
    assert load_json(path) == {"a": ",,,,,,", "b": 1, "c": 2}
    path.write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(ValueError, match="more than 3 values"):
        load_json(path)


def test_texts_of_many_commas_are_samples(tmp_path: Path) -> None:
    text = "a, b, " * 800_000
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"a": text}] * 6))
    assert [sample for _, sample in read_json(path)] == [{"a": text}] * 6
    path.write_text(json.dumps({"a": text * 3}))
    assert [sample for _, sample in read_records(path)] == [{"a": text * 3}]


# ------------------------------------------------------------------------------------------------- fields and names


def test_new_fields_in_each_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacherlm.dataset.dataset_folder.FIELDS", 100)
    records = ((f"line {number}", {f"k{number}": 1}) for number in range(200))
    assert mistake(lambda: list(gather_types(records, {}))).startswith("line 100: up to here the records have more")


def test_new_names_in_the_objects_of_each_record() -> None:
    """The time grew with the square of their number: 4,000 records took 17 seconds."""
    records = ((f"line {number}", {"a": [{"b": {f"k{number}": 1}}]}) for number in range(20_000))
    said = mistake(lambda: list(gather_types(records, {})))
    assert said.startswith("line 998: up to here the objects in the field 'a' have more than 1,000 fields")


def test_a_column_whose_name_has_a_null(tmp_path: Path, inside: Callable) -> None:
    (tmp_path / "t.csv").write_text("sentence,label,a\0b\nx,true,y\n")
    (tmp_path / "d.csv").write_text("sentence,label\nx,true\n")
    error = only_error(inside("data_prepare", *prepared(tmp_path, "t.csv", "d.csv")[1:]))
    assert "t.csv, line 2: the field" in error and "has \\u0000 in a name" in error


def test_a_value_from_a_files_name_that_is_no_utf_8(tmp_path: Path, inside: Callable) -> None:
    for name in (b"a\xff_t.json", b"a_d.json"):
        (tmp_path / os.fsdecode(name)).write_text(json.dumps(CLAIM))
    error = only_error(inside("data_prepare", *prepared(tmp_path, "*_t.json", "*_d.json", "file_field: of\n")[1:]))
    assert "line 1: the field 'of' has \\udcff, half of a surrogate pair" in error


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video"])
def test_a_saved_dataset_with_a_column_that_is_decoded(tmp_path: Path, inside: Callable, kind: str) -> None:
    """Reading a sample would open the file that it names."""
    column = {"path": ["/etc/passwd"] * 2, "bytes": [None] * 2}
    rows = [{"path": path, "bytes": content} for path, content in zip(column["path"], column["bytes"])]
    of = {"sentence": datasets.Value("string"), "label": datasets.Value("string")}
    features = datasets.Features({**of, "odd": datasets.List({"inner": getattr(datasets, kind)()})})
    plain = datasets.Features({**of, "odd": datasets.List({"inner": {"bytes": datasets.Value("binary"),
                                                                     "path": datasets.Value("string")}})})  # fmt: skip
    made = datasets.Dataset.from_dict(
        {"sentence": ["a", "b"], "label": ["true", "false"], "odd": [[{"inner": row}] for row in rows]}, features=plain
    )
    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": made, "validation": made}).save_to_disk(str(folder))
    for split in ("train", "validation"):
        path = folder / split / "dataset_info.json"
        described = json.loads(path.read_text())
        described["features"] = datasets.Features(features).to_dict()
        path.write_text(json.dumps(described))
    error = only_error(inside("data_prepare", *prepared(tmp_path, "t", "d")[1:], "--data", folder))
    assert f"the column 'odd' is of the type {kind}; texts and numbers were expected" in error
