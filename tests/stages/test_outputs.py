"""Things in the place of an output: a symbolic link is followed, and anything that cannot be replaced is named."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.enhancing import prompts
from support.explained import explain
from support.files import contents
from support.finetuning import flags
from support.programs import only_error
from support.scoring import words as evaluate_words

from teacherlm.core.errors import UserError
from teacherlm.core.files import set_aside, whole_file, whole_folder
from teacherlm.core.outputs import require_file_place, require_folder_place, require_writable


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that stands for another disk, to which links lead."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder for outputs."""
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "dangling"])
def test_a_link_to_a_file_is_written_through(there: bool, place: Path, elsewhere: Path) -> None:
    link, target = place / "out.jsonl", elsewhere / "real.jsonl"
    link.symlink_to(target)
    if there:
        target.write_text("old")
    with whole_file(link) as file:
        file.write("new")
    assert (link.is_symlink(), target.read_text()) == (True, "new")
    assert ([path.name for path in place.iterdir()], [path.name for path in elsewhere.iterdir()]) == (
        ["out.jsonl"],
        ["real.jsonl"],
    )


@pytest.mark.parametrize("there", [True, False], ids=["to a folder", "dangling"])
def test_a_link_to_a_folder_is_written_through(there: bool, place: Path, elsewhere: Path) -> None:
    link, target = place / "CREAK", elsewhere / "real"
    link.symlink_to(target)
    if there:
        target.mkdir()
        (target / "old").touch()
    with whole_folder(link) as whole:
        (whole / "new").touch()
    assert link.is_symlink()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in elsewhere.iterdir()] == ["real"]


def test_what_a_link_leads_to_is_set_aside_and_the_link_stays(place: Path, elsewhere: Path) -> None:
    link = place / "out.jsonl"
    link.symlink_to(elsewhere / "real.jsonl")
    assert set_aside(link) is None
    (elsewhere / "real.jsonl").write_text("old")
    old = set_aside(link)
    assert old.parent == elsewhere
    assert old.read_text() == "old"
    assert link.is_symlink()


def test_a_folder_that_is_a_dangling_link_is_made(place: Path, elsewhere: Path) -> None:
    (place / "runs").symlink_to(elsewhere / "runs")
    require_writable(place / "runs")
    assert (elsewhere / "runs").is_dir()


def lead_nowhere(path: Path) -> None:
    path.symlink_to("/nowhere/there")


def lead_in_a_circle(path: Path) -> None:
    path.symlink_to(path.with_name("back"))
    path.with_name("back").symlink_to(path)


FLAWS = [
    (require_file_place, Path.mkdir, "this is a folder, but a file was expected"),
    (require_file_place, os.mkfifo, "this is not an ordinary file"),
    (require_file_place, lead_nowhere, "symbolic link to /nowhere/there, whose folder does not exist"),
    (require_file_place, lead_in_a_circle, "leads in a circle"),
    (require_folder_place, Path.touch, "is a file, not a folder"),
    (require_folder_place, lead_nowhere, "symbolic link to /nowhere/there, whose folder does not exist"),
    (require_folder_place, lead_in_a_circle, "leads in a circle"),
]


@pytest.mark.parametrize(("require", "make", "said"), FLAWS)
def test_what_cannot_be_replaced_is_named(require: Callable, make: Callable, said: str, place: Path) -> None:
    make(place / "out")
    with pytest.raises(UserError, match=said) as caught:
        require(place / "out")
    assert str(place / "out") in str(caught.value)


def test_enhance_through_a_dangling_link(place: Path, elsewhere: Path, inside: Callable) -> None:
    records = prompts(elsewhere / "SAMPLE.jsonl", 3)
    link, plain = place / "SAMPLE_cot.jsonl", elsewhere / "plain.jsonl"
    link.symlink_to(elsewhere / "real.jsonl")
    for output in (link, plain):
        assert inside(*explain(records, output)).returncode == 0
    assert link.is_symlink()
    assert (elsewhere / "real.jsonl").read_bytes() == plain.read_bytes()
    assert "done already" in inside(*explain(records, link)).stdout


def test_finetune_through_a_dangling_link(
    tiny_llama: Path, prepared: Path, place: Path, elsewhere: Path, inside: Callable
) -> None:
    (place / "run").symlink_to(elsewhere / "run")
    words = [*flags(tiny_llama, prepared / "SAMPLE", place / "run"), "--num_train_epochs", 1]
    result = inside("finetune", *words)
    assert result.returncode == 0, result.stderr
    assert (place / "run").is_symlink()
    assert (elsewhere / "run" / "manifest.json").is_file()


def outputs(model: Path, prepared: Path, records: Path, place: Path) -> dict[str, tuple[Path, list[object]]]:
    """A file or folder that each stage writes, and the stage's command."""
    sample = ["data_prepare", "--benchmark", "sample", "--output_dir", place, "--test_dir", place / "tests"]
    evaluate = ["evaluate", *evaluate_words(model, "sample", prepared / "tests", place), "--limit", 2]
    return {
        "prepare, records": (place / "SAMPLE.jsonl", sample),
        "prepare, dataset": (place / "SAMPLE", sample),
        "prepare, test set": (place / "tests" / "sample", sample),
        "enhance": (place / "SAMPLE_cot.jsonl", explain(records, place / "SAMPLE_cot.jsonl")),
        "finetune": (place / "run", ["finetune", *flags(model, prepared / "SAMPLE", place / "run")]),
        "evaluate": (place / model.name / "sample.json", evaluate),
    }


@pytest.mark.parametrize("stage", ["prepare, records", "enhance", "evaluate"])
def test_a_folder_where_a_stage_writes_a_file(
    stage: str, tiny_llama: Path, prepared: Path, elsewhere: Path, place: Path, inside: Callable
) -> None:
    records = prompts(elsewhere / "SAMPLE.jsonl", 3)
    output, command = outputs(tiny_llama, prepared, records, place)[stage]
    output.mkdir(parents=True)
    (output / "mine").touch()
    before = contents(place)
    assert f"{output}: this is a folder, but a file was expected" in only_error(inside(*command))
    assert contents(place) == before


@pytest.mark.parametrize("stage", ["prepare, test set", "finetune"])
def test_a_file_where_a_stage_writes_a_folder(
    stage: str, tiny_llama: Path, prepared: Path, elsewhere: Path, place: Path, inside: Callable
) -> None:
    records = prompts(elsewhere / "SAMPLE.jsonl", 3)
    output, command = outputs(tiny_llama, prepared, records, place)[stage]
    output.parent.mkdir(exist_ok=True)
    output.write_text("mine")
    before = contents(place)
    assert f"{output}: cannot be written ({output} is a file, not a folder)" in only_error(inside(*command))
    assert contents(place) == before


@pytest.mark.parametrize("stage", ["prepare, records", "prepare, dataset", "enhance", "finetune", "evaluate"])
def test_a_link_that_leads_nowhere(
    stage: str, tiny_llama: Path, prepared: Path, elsewhere: Path, place: Path, inside: Callable
) -> None:
    records = prompts(elsewhere / "SAMPLE.jsonl", 3)
    output, command = outputs(tiny_llama, prepared, records, place)[stage]
    output.parent.mkdir(exist_ok=True)
    lead_nowhere(output)
    assert f"{output}: this is a symbolic link to /nowhere/there" in only_error(inside(*command))
    assert output.readlink() == Path("/nowhere/there")
    assert not Path("/nowhere").exists()
