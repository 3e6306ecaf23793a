"""Samples are read as they are published: JSON lines, a JSON list, CSV with and without a header, a saved dataset."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.sources import Sample, read_split, source_files
from teacherlm.core.errors import UserError
from teacherlm.core.records import Record

CLAIMS = [{"sentence": f"Claim {number}", "label": "true"} for number in range(1, 6)]
ECQA = ["q_text", "q_op1", "q_op2", "q_op3", "q_op4", "q_op5", "q_ans"]


def read(name: str, data: Path, split: str = "train", limit: int | None = None) -> list[Sample]:
    return list(read_split(load_benchmark(name), split, data, limit))


def fields(samples: list[Sample]) -> list[Record]:
    return [sample for _, sample in samples]


def mistake(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    return str(caught.value)


@pytest.fixture
def claims_jsonl(tmp_path: Path) -> Path:
    (tmp_path / "train.json").write_text("\n\n".join(map(json.dumps, CLAIMS)))
    return tmp_path


def mmlu_file(folder: Path, text: str, name: str = "test/college_biology_test.csv") -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_json_lines_are_placed_by_line(claims_jsonl: Path) -> None:
    places = [f"{claims_jsonl / 'train.json'}, line {number}" for number in (1, 3, 5, 7, 9)]
    assert read("creak", claims_jsonl) == list(zip(places, CLAIMS))


def test_a_json_list_is_placed_by_sample(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("\n " + json.dumps(CLAIMS, indent=2))
    places = [f"{tmp_path / 'train.json'}, sample {number}" for number in (1, 2, 3, 4, 5)]
    assert read("creak", tmp_path) == list(zip(places, CLAIMS))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"sentence": "x"}, 7]', ", sample 2: a JSON object was expected, found '7'"),
        ('[{"sentence": "x"}', ": not valid JSON"),
        (b'["\xff"]', ": not valid JSON"),
        ("[]", ": empty; at least one sample was expected"),
        ("", ": empty; at least one record was expected"),
        ('{"sentence": "x"}\n{"sentence"', ", line 2: one JSON object in UTF-8 was expected"),
    ],
)
def test_broken_json_is_named(tmp_path: Path, content: str | bytes, words: str) -> None:
    file = tmp_path / "train.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert mistake(lambda: read("creak", tmp_path)).startswith(f"{file}{words}")


def test_a_csv_with_a_header_gives_its_columns(tmp_path: Path) -> None:
    row = ["Why, bees?", '"hive"', "two\nlines", "c", "d", "e", "c"]
    text = ",".join(ECQA) + "\r\n" + ",".join('"' + value.replace('"', '""') + '"' for value in row) + "\r\n"
    (tmp_path / "cqa_data_train.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert fields(read("ecqa", tmp_path)) == [dict(zip(ECQA, row))]


def test_a_csv_without_a_header_gives_the_benchmarks_columns(tmp_path: Path) -> None:
    """Columns with the same name become a list, and the name of the file becomes a field."""
    file = mmlu_file(tmp_path, 'What is 2 + 2?,3,4,5,"6, or 7",B\n')
    sample = {"question": "What is 2 + 2?", "choices": ["3", "4", "5", "6, or 7"], "answer": "B"}
    assert read("mmlu", tmp_path, "test") == [(f"{file}, line 1", {**sample, "subject": "college_biology"})]


def test_files_of_a_pattern_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for subject in ("virology", "anatomy", "miscellaneous"):
        mmlu_file(tmp_path, "q,a,b,c,d,A\n", f"test/{subject}_test.csv")
    subjects = [sample["subject"] for sample in fields(read("mmlu", tmp_path, "test"))]
    assert subjects == ["anatomy", "miscellaneous", "virology"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q,a,b,c,d,A\nq,a,b,c,A\n", ", line 2: a row of 6 columns was expected, found 5"),
        ('"q\nq",a,b,c,d,A\n\nq,a,b,c,d,A,A\n', ", line 4: a row of 6 columns was expected, found 7"),
        ('q,a,b,c,d,"A\n', ", line 1: not valid CSV in UTF-8"),
        ("", ": empty; at least one row was expected"),
    ],
    ids=["few", "many", "open quote", "empty"],
)
def test_a_broken_csv_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = mmlu_file(tmp_path, text)
    assert mistake(lambda: read("mmlu", tmp_path, "test")).startswith(f"{file}{words}")


def test_a_csv_of_a_header_alone_is_empty(tmp_path: Path) -> None:
    (tmp_path / "cqa_data_train.csv").write_text(",".join(ECQA))
    assert "empty; at least one row was expected" in mistake(lambda: read("ecqa", tmp_path))


def test_a_csv_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    mmlu_file(tmp_path, "q,a,b,c,d,A\n").write_bytes(b"caf\xe9,a,b,c,d,A\n")
    assert "not valid CSV in UTF-8" in mistake(lambda: read("mmlu", tmp_path, "test"))


def test_a_saved_dataset_gives_the_splits_of_the_hub(tmp_path: Path) -> None:
    parts = {"train": CLAIMS[:3], "validation": CLAIMS[3:]}
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    assert fields(read("creak", tmp_path / "saved")) == CLAIMS[:3]
    places = [f"{tmp_path / 'saved'}, validation sample {number}" for number in (1, 2)]
    assert read("creak", tmp_path / "saved", "test") == list(zip(places, CLAIMS[3:]))


def test_a_split_that_a_saved_dataset_lacks_is_named(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(CLAIMS)}).save_to_disk(str(tmp_path))
    message = mistake(lambda: read("creak", tmp_path, "test"))
    assert message == f"{tmp_path}: no split 'validation'; there are: train"


def test_a_limit_reads_the_first_samples_only(claims_jsonl: Path) -> None:
    with open(claims_jsonl / "train.json", "a") as file:
        file.write("\nbroken")
    assert fields(read("creak", claims_jsonl, limit=2)) == CLAIMS[:2]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = mistake(lambda: read("creak", tmp_path / "nowhere"))
    assert message == f"{tmp_path / 'nowhere'}: no such folder; the data of CREAK was expected there"


@pytest.mark.parametrize(("name", "file"), [("creak", "dev.json"), ("mmlu", "test/*_test.csv")])
def test_a_missing_file_is_named(claims_jsonl: Path, name: str, file: str) -> None:
    message = mistake(lambda: read(name, claims_jsonl, "test"))
    assert message.startswith(f"{claims_jsonl / file}: no such file; ")


def test_a_split_that_the_benchmark_lacks_is_named(claims_jsonl: Path) -> None:
    assert "no split 'dev'; there are: train, test" in mistake(lambda: read("creak", claims_jsonl, "dev"))


def test_a_benchmark_that_comes_with_its_data_needs_no_folder() -> None:
    sample = load_benchmark("sample")
    assert len(list(read_split(sample, "train"))) == 160
    assert [file.name for file in source_files(sample, None)] == ["dev.json", "train.json"]


def test_the_files_of_all_splits_are_the_source(claims_jsonl: Path) -> None:
    """A stage is done again when one of them changes."""
    (claims_jsonl / "dev.json").write_text("{}")
    (claims_jsonl / "notes.txt").touch()
    found = source_files(load_benchmark("creak"), claims_jsonl)
    assert found == [claims_jsonl / "dev.json", claims_jsonl / "train.json"]


def test_the_hub_has_no_local_files() -> None:
    assert source_files(load_benchmark("creak"), None) == []
