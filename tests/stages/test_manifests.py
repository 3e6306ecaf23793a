"""A manifest means done: it holds while nothing changed, and names what did."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.programs import ROOT

from teacherlm.core.manifests import describe, manifest_of, read_manifest, reasons_not_done, revision, write_manifest

ARGUMENTS = {"benchmark": "creak", "limit": None}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run that is done: it read source/ and wrote CREAK.jsonl and the folder CREAK/."""
    folder = tmp_path / "run"
    (folder / "CREAK" / "train").mkdir(parents=True)
    (folder / "source").mkdir()
    (folder / "source" / "train.json").write_text("claims")
    (folder / "source" / "dev.json").write_text("more claims")
    (folder / "CREAK.jsonl").write_text("records\n")
    (folder / "CREAK" / "state.json").write_text("{}")
    (folder / "CREAK" / "train" / "data.arrow").write_bytes(b"\0\1")
    write_manifest(
        manifest_of(folder / "CREAK.jsonl"),
        stage="prepare",
        arguments=ARGUMENTS,
        inputs={"source": describe(folder / "source")},
        outputs={"records": describe(folder / "CREAK.jsonl"), "dataset": describe(folder / "CREAK")},
        counts={"train": 1},
        started=time.time(),
    )
    return folder


def found(folder: Path, stage: str = "prepare", arguments: dict[str, Any] = ARGUMENTS) -> list[str]:
    """What a second run of the same work finds changed."""
    manifest = read_manifest(folder / "CREAK.manifest.json")
    known = (manifest or {}).get("inputs", {}).get("source")
    return reasons_not_done(manifest, stage, arguments, {"source": describe(folder / "source", known)})


def test_nothing_changed_is_done(run_folder: Path) -> None:
    assert found(run_folder) == []


def test_work_without_a_manifest_is_not_done(run_folder: Path) -> None:
    (run_folder / "CREAK.manifest.json").unlink()
    assert found(run_folder) == ["not done yet"]


@pytest.mark.parametrize("content", [b"", b'{"stage": "prep', b"[]", b'{"stage": "prepare"}', b"\xff\xfe", b"null"])
def test_a_manifest_that_cannot_be_read_means_not_done(run_folder: Path, content: bytes) -> None:
    (run_folder / "CREAK.manifest.json").write_bytes(content)
    assert found(run_folder) == ["not done yet"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({**ARGUMENTS, "limit": 8}, "limit was None, is 8"),
        ({**ARGUMENTS, "seed": 0}, "seed was None, is 0"),
        ({"limit": None}, "benchmark was 'creak', is None"),
    ],
    ids=["changed", "new", "gone"],
)
def test_a_changed_argument_is_named(run_folder: Path, arguments: dict[str, Any], named: str) -> None:
    assert found(run_folder, arguments=arguments) == [named]


def test_another_stage_is_named(run_folder: Path) -> None:
    assert found(run_folder, stage="post_process") == ["made by stage prepare"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda run: (run / "source/train.json").write_text("CLAIMS"), "the source changed"),
        (lambda run: (run / "source/test.json").touch(), "the source changed"),
        (lambda run: (run / "source/dev.json").unlink(), "the source changed"),
        (lambda run: (run / "source/dev.json").rename(run / "source/val.json"), "the source changed"),
        (lambda run: (run / "CREAK.jsonl").unlink(), "the output records is gone or was changed"),
        (lambda run: (run / "CREAK.jsonl").write_text("RECORDS\n"), "the output records is gone or was changed"),
        (lambda run: shutil.rmtree(run / "CREAK"), "the output dataset is gone or was changed"),
        (lambda run: (run / "CREAK/train/data.arrow").unlink(), "the output dataset is gone or was changed"),
        (lambda run: (run / "CREAK/state.json").write_text("[]"), "the output dataset is gone or was changed"),
    ],
    ids=[
        "input of the same size",
        "input more",
        "input less",
        "input renamed",
        "output gone",
        "output of the same size",
        "output folder gone",
        "output file gone",
        "output file of the same size",
    ],
)
def test_a_changed_file_is_named(run_folder: Path, change: Callable[[Path], object], named: str) -> None:
    change(run_folder)
    assert found(run_folder) == [named]


def test_all_changes_are_named_together(run_folder: Path) -> None:
    (run_folder / "source" / "train.json").write_text("CLAIMS")
    (run_folder / "CREAK.jsonl").unlink()
    assert found(run_folder, arguments={**ARGUMENTS, "limit": 8}) == [
        "limit was None, is 8",
        "the source changed",
        "the output records is gone or was changed",
    ]


def test_a_touched_file_is_no_change(run_folder: Path) -> None:
    for file in ("source/train.json", "CREAK.jsonl", "CREAK/train/data.arrow"):
        os.utime(run_folder / file, (1, 1))
    assert found(run_folder) == []


def test_a_file_that_the_run_did_not_write_is_no_change(run_folder: Path) -> None:
    """A checkpoint's folder gains an evaluation, a dataset's folder a cache."""
    (run_folder / "CREAK" / "cache-1.arrow").touch()
    assert found(run_folder) == []


def test_a_moved_run_folder_still_holds(run_folder: Path) -> None:
    moved = run_folder.rename(run_folder.with_name("moved"))
    assert found(moved) == []


def test_a_copied_run_folder_stands_on_its_own(run_folder: Path) -> None:
    copy = Path(shutil.copytree(run_folder, run_folder.with_name("copy")))
    (copy / "CREAK.jsonl").write_text("RECORDS\n")
    assert (found(copy), found(run_folder)) == (["the output records is gone or was changed"], [])


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    """A teacher's weights are many gigabytes: size and modification time vouch for a digest that is known."""
    file = tmp_path / "weights"
    file.write_text("weights")
    known = describe(file)
    stat = file.stat()
    file.write_text("WEIGHTS")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert describe(file, known)["sha256"] == known["sha256"]


def test_the_digest_of_a_file_is_that_of_sha256sum(run_folder: Path) -> None:
    shown = subprocess.run(["sha256sum", run_folder / "CREAK.jsonl"], capture_output=True, text=True, check=True)
    assert describe(run_folder / "CREAK.jsonl")["sha256"] == shown.stdout.split()[0]


def test_the_digest_of_a_folder_is_that_of_its_sha256sum_lines(run_folder: Path) -> None:
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum"
    shown = subprocess.run(command, shell=True, cwd=run_folder / "CREAK", capture_output=True, check=True)
    assert shown.stdout.count(b"\n") == 2
    assert describe(run_folder / "CREAK")["sha256"] == hashlib.sha256(shown.stdout).hexdigest()


def test_hidden_files_and_manifests_do_not_count(run_folder: Path) -> None:
    before = describe(run_folder / "CREAK")["sha256"]
    for name in (".tmp", "manifest.json", "SAMPLE_cot.manifest.json"):
        (run_folder / "CREAK" / name).touch()
    assert describe(run_folder / "CREAK")["sha256"] == before


def test_a_manifest_says_what_ran_and_with_which_versions(run_folder: Path) -> None:
    manifest = json.loads((run_folder / "CREAK.manifest.json").read_text())
    assert manifest["counts"] == {"train": 1}
    assert manifest["outputs"]["records"]["path"] == "CREAK.jsonl"
    assert {"python", "torch", "transformers", "datasets", "teacherlm"} <= set(manifest["versions"])


def test_the_revision_is_git_s_where_no_variable_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert revision() == os.environ["TEACHERLM_REVISION"]
    monkeypatch.delenv("TEACHERLM_REVISION")
    git = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    of_git = git.stdout.strip() or None
    assert revision() in (of_git, f"{of_git}+changes")


def test_the_manifest_lies_beside_a_file_and_in_a_folder() -> None:
    assert manifest_of(Path("runs/CREAK_cot.jsonl")) == Path("runs/CREAK_cot.manifest.json")
    assert manifest_of(Path("runs/CREAK")) == Path("runs/CREAK/manifest.json")


def test_a_folder_with_a_dot_in_its_name_holds_its_manifest() -> None:
    assert manifest_of(Path("runs/opt-1.3b_cot_tail_seed0")) == Path("runs/opt-1.3b_cot_tail_seed0/manifest.json")
