"""Data behind symbolic links, which are common on shared disks: it is included, and circular links do no harm."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.atlas_models import make_questions, make_small_mmlu, run_script, write_lines
from support.mmlu import prepare
from support.mmlu_scores import SCRIPT as SCORES
from support.programs import only_error

from teacherlm.core.errors import UserError
from teacherlm.core.manifests import describe
from teacherlm.core.trees import files_below


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A dataset whose folder `train` is a link to a folder that stands for another disk."""
    (tmp_path / "disk" / "train").mkdir(parents=True)
    (tmp_path / "disk" / "train" / "claims.json").write_text("one claim")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "disk" / "train")
    return tmp_path / "data"


def test_what_is_behind_a_linked_folder_is_digested(data: Path, tmp_path: Path) -> None:
    before = describe(data)
    assert list(before["files"]) == ["train/claims.json"]
    assert describe(data, before) == before
    (tmp_path / "disk" / "train" / "claims.json").write_text("two claims")
    assert describe(data, before)["sha256"] != before["sha256"]


@pytest.mark.parametrize("place", ["data/train", "data", "data/train/claims.json"])
def test_a_link_that_leads_elsewhere_now_is_noticed_by_itself(data: Path, tmp_path: Path, place: str) -> None:
    """The new target has the same size and time as the old one, like two versions from the same archive."""
    link = tmp_path / place
    if not link.is_symlink():
        link.rename(tmp_path / "moved")
        link.symlink_to(tmp_path / "moved")
    before = describe(data)
    target = link.resolve()
    stat = next(files_below(target)).stat() if target.is_dir() else target.stat()
    other = tmp_path / "other"
    file = other / next(files_below(target)).relative_to(target) if target.is_dir() else other
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("ONE CLAIM")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    link.unlink()
    link.symlink_to(other)
    assert describe(data, before)["sha256"] != before["sha256"]


def test_links_in_a_circle_end(data: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "train" / "again").symlink_to(tmp_path / "disk" / "train")
    (tmp_path / "disk" / "train" / "back").symlink_to(data)
    (data / "self").symlink_to(data)
    assert list(describe(data)["files"]) == ["train/claims.json"]


def test_a_link_to_a_folder_around_the_data_is_refused(data: Path) -> None:
    (data / "all").symlink_to("/")
    with pytest.raises(UserError, match=r"all: this link leads to /, which contains it"):
        describe(data)


def test_folders_that_link_to_one_another_are_refused_soon(tmp_path: Path) -> None:
    """Eight such folders have a hundred thousand paths."""
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
    for name in "abcdefgh":
        for other in "abcdefgh":
            (tmp_path / name / other).symlink_to(tmp_path / other)
    started = time.monotonic()
    with pytest.raises(UserError, match="links lead here in more than 100 ways"):
        describe(tmp_path)
    assert time.monotonic() - started < 20


def test_a_replaced_split_of_mmlu_is_prepared_again(shared_data: Path, tmp_path: Path) -> None:
    whole = make_small_mmlu(tmp_path / "whole", shared_data / "mmlu", ["virology"])
    (whole / "test").rename(tmp_path / "test")
    (whole / "test").symlink_to(tmp_path / "test")
    assert prepare(tmp_path / "out", "--data_directory", whole).returncode == 0
    assert "done already" in prepare(tmp_path / "out", "--data_directory", whole).stdout
    (tmp_path / "test" / "virology_test.csv").write_text("Is this another question?,yes,no,2,3,A\n")
    assert "1 test questions" in prepare(tmp_path / "out", "--data_directory", whole).stdout


def test_a_dataset_of_linked_splits_is_the_user_s(inside: Callable, claims: Path, tmp_path: Path) -> None:
    """Without its splits the folder CREAK/ would be empty, and be overwritten."""
    words = ["--data", claims, "--output_dir", tmp_path / "out", "--test_dir", tmp_path / "tests"]
    assert inside("data_prepare", *words).returncode == 0
    saved = tmp_path / "out" / "CREAK"
    saved.rename(tmp_path / "mine")
    for file in ("manifest.json", "train/state.json"):  # no script of ours made it
        text = (tmp_path / "mine" / file).read_text()
        (tmp_path / "mine" / file).write_text(text.replace("_fingerprint", "_finger") if "train" in file else "{}")
    saved.mkdir()
    for split in ("train", "validation"):
        (saved / split).symlink_to(tmp_path / "mine" / split)
    assert "this script did not make it" in only_error(inside("data_prepare", *words))
    assert (saved / "train").is_symlink()


def test_validation_predictions_of_linked_runs_are_found(tmp_path: Path) -> None:
    """--select-step looks for them in the folders of the domains."""
    questions = make_questions(2, dataset="virology_val")
    gold = write_lines(tmp_path / "gold.jsonl", questions)
    made = [
        {
            "generation": q["answer"],
            "permutations": [{"choice_logits": {"A": 0.0}, "metadata": {**q, "is_original": 1}}],
        }
        for q in questions
    ]
    write_lines(tmp_path / "disk" / "virology.val-step-7.jsonl", made)
    write_lines(tmp_path / "disk" / "virology.test-step-7.jsonl", made)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "virology").symlink_to(tmp_path / "disk")
    words = ["--predictions_path", tmp_path / "runs", "--gold_path", gold, "--select-step", gold]
    done = run_script(SCORES, [*map(str, words)], {})
    assert done.returncode == 0, done.stderr
    assert "step 7: 100.00 on 2 validation questions" in done.stdout
