"""data_prepare.py and a dataset that the user saved at ./CREAK: it is the source, and not a word of it is lost."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from support.files import contents, read_lines, sample_claims
from support.programs import only_error, warm_python

Prepare = Callable[..., subprocess.CompletedProcess]
PROMPTS = ["text", "cot_text", "error_text", "fundamental_text"]
TRAIN, TEST, OTHER = list(sample_claims("train"))[:12], list(sample_claims("dev"))[:8], list(sample_claims("dev"))[8:12]


def save(folder: Path, train: list[dict] = TRAIN, **more: list[dict]) -> None:
    parts = {"train": train, "validation": TEST, "contrast_set": OTHER} | more
    saved = {name: datasets.Dataset.from_list(part) for name, part in parts.items() if part}
    datasets.DatasetDict(saved).save_to_disk(str(folder))


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of the user's files, without what this project's manifests add."""
    return {name: content for name, (content, _) in contents(folder).items() if name != "manifest.json"}


def own_words(rows: datasets.Dataset) -> list[dict]:
    return [{name: row[name] for name in TRAIN[0]} for row in rows]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, in which the commands are run."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def prepare(place: Path, inside: Prepare) -> Prepare:
    """Prepare CREAK without the network. The hub's CREAK has 10,176 training samples, and those here have 12."""
    return lambda *words: inside("data_prepare", "--test_dir", place.parent / "tests", *words)


def check(place: Path, train: list[dict] = TRAIN) -> None:
    """Check that the prepared files are those of these samples, as the design says."""
    for record, claim in zip(read_lines(place / "CREAK.jsonl"), train, strict=True):
        letter = {"true": "A", "false": "B"}[claim["label"]]
        asked = f"Determine the correctness of the following sentence. {claim['sentence']} (A) True (B) False"
        assert record == claim | {name: record[name] for name in PROMPTS}
        assert record["text"] == f"Q: {asked} A: The answer is ({letter})."
    saved = datasets.load_from_disk(str(place / "CREAK"))
    assert own_words(saved["train"]) == train
    assert own_words(saved["validation"]) == TEST
    assert saved["train"]["text"][:] == [record["text"] for record in read_lines(place / "CREAK.jsonl")]
    assert own_words(datasets.load_from_disk(str(place.parent / "tests" / "creak"))) == TEST


@pytest.mark.parametrize("words", [(), ("--data", "./CREAK"), ("--data", "CREAK/"), ("--data", "../here/CREAK")])
def test_it_is_the_source_again_and_again_and_a_copy_of_it_stays(
    place: Path, prepare: Prepare, words: tuple[str, ...]
) -> None:
    save(place / "CREAK")
    before = files_of(place / "CREAK")
    first = prepare(*words)
    assert (first.returncode, first.stderr) == (0, "")
    check(place)
    assert files_of(place / "CREAK.source") == before
    assert sorted(file.name for file in place.iterdir()) == [
        "CREAK",
        "CREAK.jsonl",
        "CREAK.manifest.json",
        "CREAK.source",
    ]
    written = contents(place)
    for again in (words, (), ("--data", "CREAK")):
        result = prepare(*again)
        assert (result.returncode, result.stderr) == (0, "")
        assert f"done already, nothing to do (CREAK.manifest.json matches CREAK's source, {place}/CREAK.source)" in (
            result.stdout
        )
        assert prepare(*again, "--list_missing").stdout == ""
    assert contents(place) == written


def test_a_link_to_it_is_the_source_and_what_it_leads_to_stays(place: Path, prepare: Prepare) -> None:
    save(place.parent / "mine")
    before = contents(place.parent / "mine")
    (place / "CREAK").symlink_to(place.parent / "mine")
    assert prepare().returncode == 0
    check(place)
    assert contents(place.parent / "mine") == before
    assert not [file.name for file in place.iterdir() if file.name.startswith(".")]


def test_explanations_end_in_the_dataset_that_finetune_sh_reads(place: Path, prepare: Prepare) -> None:
    save(place / "CREAK")
    before = files_of(place / "CREAK")
    prepare()
    with open(place / "CREAK_cot.jsonl", "w", encoding="utf-8") as file:
        for record in read_lines(place / "CREAK.jsonl"):
            file.write(json.dumps({**record, "cot": " It is.", "all": record["cot_text"] + " It is."}) + "\n")
    assert prepare().returncode == 0
    saved = datasets.load_from_disk(str(place / "CREAK"))
    assert own_words(saved) == TRAIN
    assert saved["cot_tail"][:] == [record["cot_text"] + " It is." for record in read_lines(place / "CREAK.jsonl")]
    assert files_of(place / "CREAK.source") == before
    assert prepare().stdout.count("done already") == 3


@pytest.mark.parametrize("words", [(), ("--post_process",)])
def test_explanations_that_were_there_first_replace_it_once_it_is_kept(
    place: Path, prepare: Prepare, words: tuple[str, ...]
) -> None:
    """CREAK.jsonl and CREAK_cot.jsonl exist without manifests, like files of the reference."""
    save(place / "CREAK")
    before = files_of(place / "CREAK")
    record = {**TRAIN[0], "text": "Q", "cot_text": "Q C", "cot": " So.", "all": "Q C So."}
    for name in ("CREAK.jsonl", "CREAK_cot.jsonl"):
        (place / name).write_text(json.dumps(record) + "\n")
    own = datasets.Dataset.from_list([{"question": "Mine? (A) True (B) False", "answer": "(A)"}])
    own.save_to_disk(str(place.parent / "tests" / "creak"))
    result = prepare(*words)
    assert (result.returncode, result.stderr) == (0, "")
    assert datasets.load_from_disk(str(place / "CREAK"))["cot_tail"][:] == ["Q C So."]
    assert files_of(place / "CREAK.source") == before


def test_another_dataset_in_its_place_is_the_new_source(place: Path, prepare: Prepare) -> None:
    """It is saved over the prepared dataset, whose manifest stays in the folder."""
    save(place / "CREAK")
    first = files_of(place / "CREAK")
    prepare()
    changed = [{**TRAIN[0], "sentence": "Snow is warm.", "label": "false"}, *TRAIN[1:]]
    save(place / "CREAK", changed)
    second = files_of(place / "CREAK")
    result = prepare()
    assert "again, because the source changed" in result.stdout
    check(place, changed)
    assert {name: content for name, content in second.items() if name in files_of(place / "CREAK.source")} == files_of(
        place / "CREAK.source"
    )
    (earlier,) = place.glob("CREAK.source.old-*")
    assert files_of(earlier) == first
    assert "done already" in prepare().stdout


def test_a_call_without_data_goes_on_from_the_folder_that_an_earlier_one_named(
    place: Path, prepare: Prepare, claims: Path
) -> None:
    assert prepare("--data", claims).returncode == 0
    check(place)
    assert f"done already, nothing to do (CREAK.manifest.json matches CREAK's source, {claims})" in prepare().stdout
    (place / "CREAK.jsonl").unlink()
    assert prepare().returncode == 0
    check(place)
    lines = (claims / "train.json").read_text().splitlines()
    lines[0] = json.dumps({**TRAIN[0], "sentence": "Snow is warm."})
    (claims / "train.json").write_text("\n".join(lines))
    result = prepare()
    assert f"again, because the source changed\nprepare: the source is {claims}\n" in result.stdout
    check(place, [{**TRAIN[0], "sentence": "Snow is warm."}, *TRAIN[1:]])

    claims.rename(claims.with_name("gone"))
    before = contents(place)
    result = prepare()
    assert (result.returncode, result.stderr) == (0, "")
    assert (
        f"nothing to do (CREAK.manifest.json matches CREAK's source, {claims}, which no longer exists" in result.stdout
    )
    assert f"{claims}: no such folder" in only_error(prepare("--data", claims))
    assert contents(place) == before
    (place / "CREAK.jsonl").unlink()
    assert f"{claims}: no such folder" in only_error(prepare())


def test_files_in_the_output_folder_itself_are_a_source(place: Path, prepare: Prepare, claims: Path) -> None:
    for name in ("train.json", "dev.json"):
        shutil.move(claims / name, place / name)
    for words in (("--data", "."), ("--data", place), ()):
        result = prepare(*words)
        assert (result.returncode, result.stderr) == (0, "")
        check(place)
    assert "done already" in result.stdout


def test_a_saved_dataset_around_the_output_folder_is_a_source(place: Path, prepare: Prepare) -> None:
    """What is written into it does not count as a part of it."""
    save(place)
    before = contents(place)
    for words in (("--data", "."), (), ("--data", place)):
        result = prepare(*words)
        assert (result.returncode, result.stderr) == (0, "")
        check(place)
    assert "done already" in result.stdout
    assert {name: file for name, file in contents(place).items() if name in before} == before


def renamed(rows: list[dict]) -> list[dict]:
    return [{("claim" if name == "sentence" else name): value for name, value in row.items()} for row in rows]


def damage(folder: Path) -> None:
    (arrow,) = (folder / "train").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])


MISTAKES = {
    "no test split": (
        lambda folder: save(folder, validation=[]),
        "CREAK: no split 'validation'; there are: train, contrast_set",
    ),
    "no such field": (
        lambda folder: save(folder, renamed(TRAIN)),
        "CREAK, train: the field 'sentence' is missing; CREAK needs sentence, label; there are: ex_id, claim,",
    ),
    "no such field in the test split": (
        lambda folder: save(folder, validation=renamed(TEST)),
        "CREAK, validation: the field 'sentence' is missing",
    ),
    "a label that is none": (
        lambda folder: save(folder, [*TRAIN[:2], {**TRAIN[2], "label": "maybe"}]),
        "CREAK, train sample 3: the field 'label' is 'maybe'; expected one of 'true', 'false'",
    ),
    "a field of ours": (
        lambda folder: save(folder, [{**claim, "cot_text": "mine"} for claim in TRAIN]),
        "CREAK, train sample 1: the field 'cot_text' is already there",
    ),
    "no splits": (
        lambda folder: datasets.Dataset.from_list(TRAIN).save_to_disk(str(folder)),
        "CREAK: a DatasetDict was expected, found one Dataset without splits; CREAK needs train, validation",
    ),
    "cut off": (lambda folder: [save(folder), damage(folder)], "CREAK: cannot be read as a dataset that save_to_disk"),
    "a part is missing": (
        lambda folder: [save(folder), shutil.rmtree(folder / "validation")],
        "CREAK: cannot be read as a dataset that save_to_disk wrote",
    ),
    "no dataset": (
        lambda folder: [folder.mkdir(), (folder / "notes.txt").write_text("mine")],
        "CREAK: this script did not make it, nor did save_to_disk, and",
    ),
    "a file": (lambda folder: folder.write_text("mine"), "CREAK: this script did not make it, nor did save_to_disk"),
}


@pytest.mark.parametrize("kind", MISTAKES)
@pytest.mark.parametrize("words", [(), ("--data", "CREAK")])
def test_a_mistake_in_it_is_one_line_and_it_stays_as_it_is(
    place: Path, prepare: Prepare, kind: str, words: tuple[str, ...]
) -> None:
    make, expected = MISTAKES[kind]
    make(place / "CREAK")
    before = contents(place)
    for _ in range(2):
        assert expected in only_error(prepare(*words))
        assert contents(place) == before


def test_with_another_source_it_is_refused_before_any_work(place: Path, prepare: Prepare, claims: Path) -> None:
    save(place / "CREAK")
    before = contents(place.parent)
    assert "CREAK: this script did not make it, and the prepared dataset would" in only_error(prepare("--data", claims))
    assert contents(place.parent) == before


def test_a_copy_s_place_that_is_taken_is_named(place: Path, prepare: Prepare) -> None:
    save(place / "CREAK")
    save(place / "CREAK.source", TRAIN[:1])
    before = files_of(place / "CREAK"), files_of(place / "CREAK.source")
    assert "CREAK.source: this script did not make it, and a copy of CREAK would go there" in only_error(prepare())
    assert (files_of(place / "CREAK"), files_of(place / "CREAK.source")) == before


@pytest.mark.parametrize("words", [(), ("--test_only",)])
def test_a_test_set_of_the_user_s_own_is_taken_as_it_is(
    place: Path, prepare: Prepare, claims: Path, words: tuple[str, ...]
) -> None:
    own = datasets.Dataset.from_list([{"question": "Mine? (A) True (B) False", "answer": "(A)"}])
    own.save_to_disk(str(place.parent / "tests" / "creak"))
    before = contents(place.parent / "tests")
    result = prepare("--data", claims, *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert "tests/creak was not made by this script: it is used as it is" in result.stdout
    assert contents(place.parent / "tests") == before


def test_a_test_set_that_another_folder_s_call_made_is_made_again(place: Path, prepare: Prepare, claims: Path) -> None:
    prepare("--data", claims, "--output_dir", "other")
    (claims / "dev.json").write_text("\n".join(json.dumps(claim) for claim in OTHER))
    assert prepare("--data", claims).returncode == 0
    assert own_words(datasets.load_from_disk(str(place.parent / "tests" / "creak"))) == OTHER


def test_explanations_of_earlier_records_are_said(place: Path, prepare: Prepare, inside: Prepare) -> None:
    save(place / "CREAK")
    prepare()
    words = ["--name", "field:explanation", "--input", "CREAK.jsonl", "--output", "CREAK_cot.jsonl"]
    assert inside("enhance", *words, "--task_type", "cot_text").returncode == 0
    assert "run enhance.sh again" not in prepare().stdout
    save(place / "CREAK", TRAIN[:6])
    assert "CREAK_cot.jsonl was made from an earlier CREAK.jsonl; run enhance.sh again" in prepare().stdout


# A call is killed before each of its renames in turn: between them nothing but hidden files changes.
KILLER = """
import os, runpy, shutil, signal, sys
from pathlib import Path
import datasets
from teacherlm.dataset import main as data_prepare
from teacherlm.core.programs import run
EVENTS = ("os.rename",)
place, pristine = Path(sys.argv[1]), Path(sys.argv[2])

def call(folder, last=None):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen = 0
    def watch(event, words):
        nonlocal seen
        if event in EVENTS and "/killed-" in os.path.abspath(str(words[0])):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)
    os.chdir(folder)
    if last:
        sys.addaudithook(watch)
    sys.stdout = open(os.devnull, "w")
    sys.argv = ["data_prepare.py", "--test_dir", "tests"]
    run(data_prepare.main)

for last in range(1, 1000):
    folder = place / f"killed-{last}"
    shutil.copytree(pristine, folder)
    if call(folder, last) != signal.SIGKILL:
        break
    shutil.copytree(folder, place / f"then-{last}")
    print(last, call(folder), flush=True)
"""


def test_killed_at_each_of_its_steps_nothing_is_lost_and_the_next_call_ends_well(tmp_path: Path) -> None:
    save(tmp_path / "pristine" / "CREAK")
    before = files_of(tmp_path / "pristine" / "CREAK")
    command = [warm_python(), "-c", KILLER, tmp_path, tmp_path / "pristine"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills = [line.split() for line in done.stdout.splitlines()]
    assert len(kills) > 7
    for number, status in kills:
        left = [tmp_path / f"then-{number}" / name for name in ("CREAK", "CREAK.source")]
        assert before in [files_of(folder) for folder in left], number
        assert status == "0", number
        ended = tmp_path / f"killed-{number}"
        assert [record["sentence"] for record in read_lines(ended / "CREAK.jsonl")] == [c["sentence"] for c in TRAIN]
        saved = datasets.load_from_disk(str(ended / "CREAK"))
        assert own_words(saved["train"]) == TRAIN and "text" in saved["train"].column_names
        assert files_of(ended / "CREAK.source") == before
