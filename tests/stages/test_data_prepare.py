"""data_prepare.py: the files it writes, what it leaves alone, and how it answers to bad input."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from support.files import contents, read_lines
from support.programs import only_error

OWN = ["ex_id", "sentence", "explanation", "label", "entity", "en_wiki_pageid", "entity_mention_loc"]
PROMPTS = ["text", "cot_text", "error_text", "fundamental_text"]
KINDS = ("cot", "error", "fundamental")
ENDINGS = {
    "text": "",
    "cot_text": " Let's think step by step.",
    "error_text": " The common mistakes are:",
    "fundamental_text": " The fundamental of this question is:",
}


class Workplace:
    """CREAK in a folder of the test, with its claims and the folders for the results."""

    def __init__(self, claims: Path, folder: Path, run: Callable[..., subprocess.CompletedProcess]):
        self.claims, self.run = claims, run
        self.output, self.tests = folder / "output", folder / "tests"

    def prepare(self, *flags: object) -> subprocess.CompletedProcess:
        return self.run(
            "data_prepare", "--data", self.claims, "--output_dir", self.output, "--test_dir", self.tests, *flags
        )

    def enhance(self, kind: str, skip: int = 0) -> Path:
        """Write by hand what enhance.py would write for a kind."""
        path = self.output / f"CREAK_{kind}.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for record in read_lines(self.output / "CREAK.jsonl")[skip:]:
                completion = f" It is the {kind} of  {record['ex_id']}. "
                all_ = record[f"{kind}_text"] + completion
                file.write(json.dumps({**record, kind: completion, "all": all_}) + "\n")
        return path

    def contents(self) -> dict[str, tuple[bytes, int]]:
        return contents(self.output) | {f"test set: {name}": file for name, file in contents(self.tests).items()}


def change_line(path: Path, number: int, change: Callable[[str], str]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def change_field(path: Path, number: int, name: str, value: object) -> None:
    change_line(path, number, lambda line: json.dumps({**json.loads(line), name: value}))


@pytest.fixture
def work(claims: Path, tmp_path: Path, inside: Callable) -> Workplace:
    return Workplace(claims, tmp_path, inside)


def test_first_run_writes_prompts_test_set_and_dataset_dict(work: Workplace) -> None:
    assert work.prepare().returncode == 0
    assert sorted(path.name for path in work.output.iterdir()) == ["CREAK", "CREAK.jsonl", "CREAK.manifest.json"]
    assert [list(record) for record in read_lines(work.output / "CREAK.jsonl")] == [OWN + PROMPTS] * 12
    saved = datasets.load_from_disk(str(work.output / "CREAK"))
    assert {name: (len(part), part.column_names) for name, part in saved.items()} == {
        "train": (12, OWN + PROMPTS),
        "validation": (8, OWN + PROMPTS),
    }
    tested = datasets.load_from_disk(str(work.tests / "creak"))
    assert (len(tested), tested.column_names) == (8, [*OWN, "task_name", "question", "answer"])


def test_second_run_with_the_cot_file_makes_creak_the_train_dataset(work: Workplace) -> None:
    work.prepare()
    records = read_lines(work.enhance("cot"))
    assert work.prepare().returncode == 0
    saved = datasets.load_from_disk(str(work.output / "CREAK"))
    assert saved.column_names == [*OWN, *PROMPTS, "cot", "all", "cot_tail", "cot_first", "parts", "cot_shuffled"]
    assert saved["all"][:] == [record["all"] for record in records]
    assert saved[3]["cot_tail"] == f"{saved[3]['cot_text']} It is the cot of {saved[3]['ex_id']}."  # blanks cleaned


def test_all_three_kinds_give_three_tails_and_the_full_one(work: Workplace) -> None:
    work.prepare()
    for kind in KINDS:
        work.enhance(kind)
    work.prepare("--post_process")
    saved = datasets.load_from_disk(str(work.output / "CREAK"))
    tails = [f"{kind}_{form}" for form in ("tail", "first") for kind in KINDS] + ["full_tail", "parts"]
    tails += [f"{kind}_shuffled" for kind in (*KINDS, "full")]
    assert saved.column_names == [*OWN, *PROMPTS, "cot", "all", "error", "fundamental", *tails]
    assert saved[0]["all"] == saved[0]["cot_text"] + saved[0]["cot"]
    for kind in KINDS:
        assert saved[0][f"{kind}_tail"].startswith(saved[0][f"{kind}_text"])
        assert f"{ENDINGS[f'{kind}_text']} It is the {kind} of" in saved[0]["full_tail"]


def test_real_creak_gives_the_design_s_prompts_and_the_reference_s_test_set(
    shared_data: Path, tmp_path: Path, stage: Callable
) -> None:
    data = ["--data", shared_data / "creak", "--output_dir", tmp_path, "--test_dir", tmp_path / "tests"]
    result = stage("data_prepare", *data)
    assert (result.returncode, result.stderr) == (0, "")
    records = read_lines(tmp_path / "CREAK.jsonl")
    assert len(records) == 10176
    for record in records:
        letter = {"true": "A", "false": "B"}[record["label"]]
        asked = f"Determine the correctness of the following sentence. {record['sentence']} (A) True (B) False"
        text = f"Q: {asked} A: The answer is ({letter})."
        assert record["text"] == text
        for name in PROMPTS[1:]:
            assert record[name] == (text + ENDINGS[name]).replace("  ", " ")
    ours = datasets.load_from_disk(str(tmp_path / "tests" / "creak"))
    theirs = datasets.load_from_disk(str(shared_data / "teacherlm_eval" / "creak"))
    assert len(ours) == 1371
    assert [(s["question"], s["answer"]) for s in ours] == [(s["question"], s["answer"]) for s in theirs]


@pytest.mark.parametrize("enhanced", [(), ("cot",)])
def test_what_is_done_and_unchanged_is_not_written_again(work: Workplace, enhanced: tuple[str, ...]) -> None:
    work.prepare()
    for kind in enhanced:
        work.enhance(kind)
    work.prepare()
    before = work.contents()
    result = work.prepare()
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("done already") == 1 + 2 * len(enhanced)  # quality, post-process
    assert work.contents() == before


def test_a_changed_source_is_prepared_again(work: Workplace) -> None:
    work.prepare()
    change_field(work.claims / "train.json", 2, "sentence", "Snow is warm.")
    assert "again, because the source changed" in work.prepare().stdout
    assert "Snow is warm." in read_lines(work.output / "CREAK.jsonl")[1]["text"]
    assert "Snow is warm." in datasets.load_from_disk(str(work.output / "CREAK"))["train"][1]["text"]


def test_a_changed_enhanced_file_is_post_processed_again(work: Workplace) -> None:
    work.prepare()
    cot = work.enhance("cot")
    work.prepare()
    change_field(cot, 2, "cot", " Something new.")
    assert work.prepare().returncode == 0
    assert datasets.load_from_disk(str(work.output / "CREAK"))[1]["cot_tail"].endswith("step by step. Something new.")


def test_a_creak_jsonl_of_someone_else_is_taken_as_it_is(work: Workplace) -> None:
    work.output.mkdir()
    (work.output / "CREAK.jsonl").write_text('{"mine": 1}\n')
    assert "it is used as it is" in work.prepare().stdout
    assert (work.output / "CREAK.jsonl").read_text() == '{"mine": 1}\n'


def test_a_file_of_the_data_is_not_taken_for_the_prepared_records(inside: Callable, tmp_path: Path) -> None:
    """Here it would be used as it is, and there would be no dataset."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"place": f"P{number}", "answer": "A"} for number in range(3)]
    for name in ("train", "dev"):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "places.yaml").write_text(
        "title: train\nsplits: {train: train, test: test}\nfiles: {train: train.jsonl, test: dev.jsonl}\n"
        'question: "Where is {{ place }}?"\nchoices: ["here", "there"]\nanswer: "{{ answer }}"\n'
    )
    before = contents(data)
    words = ("--benchmark", data / "places.yaml", "--data", data, "--output_dir", data, "--test_dir", data / "test")
    said = only_error(inside("data_prepare", *words))
    assert f"{data / 'train.jsonl'}: this file has samples of the benchmark" in said and "--output_dir" in said
    assert contents(data) == before


def test_enhanced_files_of_different_samples_are_refused(work: Workplace) -> None:
    work.prepare()
    work.enhance("cot")
    work.enhance("error", skip=1)
    before = work.contents()
    error = only_error(work.prepare("--post_process"))
    assert "CREAK_error.jsonl, line 1: the sample differs from that in" in error
    assert work.contents() == before


def test_enhanced_files_of_several_folders_are_joined(work: Workplace, tmp_path: Path) -> None:
    work.prepare()
    files = []
    for kind in ("error", "cot"):
        (tmp_path / kind).mkdir()
        files.append(work.enhance(kind).rename(tmp_path / kind / f"CREAK_{kind}.jsonl"))
    joined = [*("--output_dir", tmp_path / "joined"), "--post_process", "--enhanced"]
    assert work.prepare(*joined, *files, "--list_missing").stdout == "0\n"
    assert work.prepare(*joined, *files).returncode == 0
    saved = datasets.load_from_disk(str(tmp_path / "joined" / "CREAK"))
    assert (saved[0]["cot"], saved[0]["error"]) == tuple(
        f" It is the {kind} of  {saved[0]['ex_id']}. " for kind in KINDS[:2]
    )
    assert saved[0]["all"] == saved[0]["cot_text"] + saved[0]["cot"]  # the order is that of the prompts
    assert work.prepare(*joined, *files, "--list_missing").stdout == ""
    again = work.prepare(*joined, *reversed(files))
    assert again.stdout.count("done already, nothing to do") == 2
    for wrong, said in (
        (
            [tmp_path / "x.jsonl"],
            "x.jsonl: one of the names CREAK_cot.jsonl, CREAK_error.jsonl, CREAK_fundamental.jsonl",
        ),
        ([files[1], tmp_path / "CREAK_cot.jsonl"], "there is another file of this kind"),
        ([tmp_path / "CREAK_cot.jsonl"], "CREAK_cot.jsonl: no such file; run enhance.sh first"),
    ):
        assert said in only_error(work.prepare(*joined, *wrong))
    assert "are read only with --post_process" in only_error(work.prepare("--enhanced", files[0]))


def test_an_enhanced_file_that_ends_early_is_refused(work: Workplace) -> None:
    work.prepare()
    work.enhance("cot")
    lines = work.enhance("error").read_text().splitlines(keepends=True)
    (work.output / "CREAK_error.jsonl").write_text("".join(lines[:-1]))
    before = work.contents()
    assert "CREAK_error.jsonl: it ends before the other" in only_error(work.prepare("--post_process"))
    assert work.contents() == before


def without_sentence(line: str) -> str:
    return json.dumps({name: value for name, value in json.loads(line).items() if name != "sentence"})


def with_label_maybe(line: str) -> str:
    return json.dumps({**json.loads(line), "label": "maybe"})


BAD_LINES = {
    "missing field": (without_sentence, "line 7: the field 'sentence' is missing"),
    "bad label": (with_label_maybe, "line 7: the field 'label' is 'maybe'; expected one of 'true', 'false'"),
    "broken JSON": (lambda line: line[: len(line) // 2], "line 7: one JSON object"),
    "no object": (lambda line: "[1, 2]", "line 7: one JSON object"),
}


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_7_is_named_and_earlier_results_stay(work: Workplace, split: str, kind: str) -> None:
    change, expected = BAD_LINES[kind]
    work.prepare()
    before = work.contents()
    change_field(work.claims / "train.json", 1, "sentence", "Another claim now.")  # so that there is something to redo
    change_line(work.claims / f"{split}.json", 7, change)
    result = work.prepare()
    assert f"{work.claims / split}.json, {expected}" in only_error(result)
    assert "few-shot" not in result.stdout  # the same mistake is not reported twice
    assert work.contents() == before


def test_a_test_set_without_training_samples_says_why_it_has_no_few_shot_examples(work: Workplace) -> None:
    (work.claims / "train.json").unlink()
    done = work.prepare("--test_only")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"there are no few-shot examples: {work.claims / 'train.json'}: no such file" in done.stdout
    assert f"{work.tests / 'creak'} has 8 test samples" in done.stdout


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_input_is_named_and_earlier_results_stay(work: Workplace, text: str) -> None:
    work.prepare()
    before = work.contents()
    (work.claims / "train.json").write_text(text)
    assert f"{work.claims / 'train.json'}: empty" in only_error(work.prepare())
    assert work.contents() == before


def test_a_field_that_the_pipeline_writes_is_refused(work: Workplace) -> None:
    change_field(work.claims / "train.json", 7, "cot_text", "mine")
    assert "line 7: the field 'cot_text' is already there" in only_error(work.prepare())
    assert not (work.output / "CREAK.jsonl").exists()


@pytest.mark.parametrize("flag", ["--output_dir", "--test_dir"])
@pytest.mark.parametrize("place", ["below a file", "read-only"])
def test_a_folder_that_cannot_be_written_is_named(work: Workplace, flag: str, place: str) -> None:
    folder = work.claims / "train.json" / "below" if place == "below a file" else Path("/proc/sys/kernel/teacherlm")
    assert f"{folder}: cannot be written" in only_error(work.prepare(flag, folder))
    assert not (work.output / "CREAK.jsonl").exists()


def test_post_process_without_enhanced_files_says_what_makes_them(work: Workplace) -> None:
    work.prepare()
    assert "CREAK_cot.jsonl: no such file" in only_error(work.prepare("--post_process"))
