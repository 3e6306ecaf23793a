"""teacherlm mix: the texts of several teachers for the same samples become several texts of a sample."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.enhancing import prompts
from support.files import contents, read_lines
from support.programs import only_error

NAMES = ("a", "b")


@pytest.fixture
def mix(tiny_llama: Path, tmp_path: Path, inside: Callable) -> Callable[..., Any]:
    """Run the command on the texts of two teachers, whose answers are in fields of the records."""
    records = prompts(tmp_path / "SAMPLE.jsonl", 5)
    lines = read_lines(records)
    for number, line in enumerate(lines):
        line |= {"a": f"Text {number} of a.", "b": f"Text {number} of b." if number != 2 else ""}
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in NAMES:
        (tmp_path / name).mkdir()
        words = ["--name", f"field:{name}", "--input", records, "--output", tmp_path / name / "SAMPLE_cot.jsonl"]
        done = inside("enhance", *words, "--task_type", "cot_text", "--max_failures", 1)
        assert done.returncode == 0, done.stderr

    def run(*more: object, files: tuple[str, ...] = NAMES) -> Any:
        words = ["--kind", "cot", "--input", records, "--output", tmp_path / "SAMPLE_cot.jsonl"]
        return inside("mix", *words, "--enhanced", *(tmp_path / name / "SAMPLE_cot.jsonl" for name in files), *more)

    return run


def test_each_text_says_its_teacher_and_a_sample_may_have_fewer(mix: Callable, tmp_path: Path) -> None:
    assert mix("--list_missing").stdout == "0\n"
    assert "SAMPLE_cot.jsonl has 5 records with 9 texts" in mix().stdout
    for number, record in enumerate(read_lines(tmp_path / "SAMPLE_cot.jsonl")):
        expected = [(f" Text {number} of {name}.", name) for name in NAMES if (name, number) != ("b", 2)]
        assert [(text["text"], text["teacher"]) for text in record["cot_completions"]] == expected
        assert record["cot"] == expected[0][0] and record["all"] == record["cot_text"] + record["cot"]
    manifest = json.loads((tmp_path / "SAMPLE_cot.manifest.json").read_text())
    assert (manifest["counts"]["texts"], manifest["counts"]["ended"]) == (9, {"stop": 9})
    before = contents(tmp_path)
    assert "done already" in mix().stdout
    assert mix("--list_missing").stdout == "\n"
    assert contents(tmp_path) == before


def test_the_first_teacher_with_a_text_gives_the_field(mix: Callable, tmp_path: Path) -> None:
    assert mix(files=("b", "a")).returncode == 0
    texts = [record["cot"] for record in read_lines(tmp_path / "SAMPLE_cot.jsonl")]
    assert texts == [f" Text {number} of {'a' if number == 2 else 'b'}." for number in range(5)]


def test_mistakes_are_one_line(mix: Callable, tmp_path: Path, inside: Callable) -> None:
    assert "at least two files were expected" in only_error(mix(files=("a", "a")))
    assert "c/SAMPLE_cot.jsonl: this file is not done" in only_error(mix(files=("a", "c")))
    (tmp_path / "a" / "SAMPLE_cot.jsonl").write_text("{}\n")
    assert "a/SAMPLE_cot.jsonl: changed since it was made" in only_error(mix())


def test_texts_of_other_records_are_refused(mix: Callable, tmp_path: Path, inside: Callable) -> None:
    """The records of b are in another order."""
    lines = (tmp_path / "SAMPLE.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "other.jsonl").write_text("".join(reversed(lines)))
    words = ["--name", "field:b", "--input", tmp_path / "other.jsonl", "--task_type", "cot_text", "--restart"]
    output = tmp_path / "b" / "SAMPLE_cot.jsonl"
    assert inside("enhance", *words, "--output", output, "--max_failures", 1).returncode == 0
    assert "b/SAMPLE_cot.jsonl: made from other records than" in only_error(mix())
    assert not (tmp_path / "SAMPLE_cot.jsonl").exists()
