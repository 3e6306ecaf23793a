"""A stage's run: done or not and why, one at a time, and a manifest only of work that came to its end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.lock import if_free, lock_file
from teacherlm.core.manifests import describe, manifest_of, read_manifest
from teacherlm.core.stage_run import OneProcess, StageRun, locked

ARGUMENTS = {"seed": 0, "limit": None}
SHOUT = """
import sys, time
from pathlib import Path
from teacherlm.core.manifests import describe
from teacherlm.core.stage_run import StageRun

source, output, dwell = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
with StageRun("shout", output) as run:
    run.compare({"seed": 0, "limit": None}, {"source": describe(source, run.known.get("source"))})
    if run.is_done:
        run.say_done()
        sys.exit()
    run.say_again()
    output.write_text(source.read_text().upper())
    if dwell:
        print("written", flush=True)
        sys.stdin.read()
    run.finish({"text": output}, {"characters": 5})
    print("made", flush=True)
"""
"""A stage that writes its source in capitals. With a third argument it waits between its output and its manifest."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source.txt").write_text("words")
    return tmp_path / "source.txt"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def shout(source: Path, output: Path, dwell: str = "") -> subprocess.Popen:
    command = [sys.executable, "-P", "-c", SHOUT, str(source), str(output), dwell]
    return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True)


def said(process: subprocess.Popen) -> list[str]:
    lines, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return lines.splitlines()


def look(source: Path, output: Path, stage: str = "shout", arguments: dict[str, Any] = ARGUMENTS) -> StageRun:
    """The result of a call that only checks and does no work."""
    run = StageRun(stage, output)
    run.compare(arguments, {"source": describe(source, run.known.get("source"))})
    return run


# --- is it done, and if not, why


def test_what_is_made_is_done_and_one_line_says_so(source: Path, output: Path) -> None:
    assert look(source, output).reasons == ["not done yet"]
    assert said(shout(source, output)) == ["made"]
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    matches = f"{manifest_of(output)} matches its inputs"
    assert said(shout(source, output)) == [f"shout: done already, nothing to do ({matches})"]
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "asked", "why"),
    [
        (lambda _: None, {"stage": "whisper"}, "made by stage shout"),
        (lambda _: None, {"arguments": {**ARGUMENTS, "limit": 8}}, "limit was None, is 8"),
        (lambda _: None, {"arguments": {**ARGUMENTS, "top_p": 1.0}}, "top_p was None, is 1.0"),
        (lambda _: None, {"arguments": {"limit": None}}, "seed was 0, is None"),
        (lambda folder: (folder / "source.txt").write_text("WORDS"), {}, "the source changed"),
        (lambda folder: (folder / "out.jsonl").unlink(), {}, "the output text is gone or was changed"),
        (lambda folder: (folder / "out.jsonl").write_text("SWORD"), {}, "the output text is gone or was changed"),
        (lambda folder: (folder / "out.manifest.json").write_text("{"), {}, "not done yet"),
    ],
    ids=["stage", "argument", "more arguments", "fewer arguments", "input", "output gone", "output edited", "manifest"],
)
def test_what_changed_is_named(
    source: Path, output: Path, change: Callable[[Path], object], asked: dict[str, Any], why: str
) -> None:
    said(shout(source, output))
    assert look(source, output).is_done
    change(output.parent)
    assert look(source, output, **asked).reasons == [why]


def test_another_version_of_the_stage_is_named(source: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said(shout(source, output))
    monkeypatch.setitem(manifests.STAGE_VERSIONS, "shout", 2)
    assert look(source, output).reasons == ["made by version 1 of the stage shout, this is version 2"]


def test_what_is_stale_is_made_again_and_one_line_says_why(source: Path, output: Path) -> None:
    said(shout(source, output))
    source.write_text("other")
    output.write_text("edited by hand")
    why = "the source changed; the output text is gone or was changed"
    assert said(shout(source, output)) == [f"shout: runs again, because {why}", "made"]
    assert output.read_text() == "OTHER"
    assert look(source, output).is_done


def test_of_another_stage_s_output_again_is_not_said(
    source: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(shout(source, output))
    look(source, output, stage="whisper").say_again()
    assert capsys.readouterr().out == ""


def test_a_look_takes_no_lock_and_writes_nothing(source: Path, output: Path) -> None:
    source.parent.chmod(0o500)
    try:
        assert not look(source, output).is_done
        assert [path.name for path in source.parent.iterdir()] == ["source.txt"]
    finally:
        source.parent.chmod(0o700)


def test_an_input_that_is_known_is_not_read_again(source: Path, output: Path) -> None:
    """The known digest is used if size and modification time are unchanged, as for a teacher of many gigabytes."""
    said(shout(source, output))
    times = source.stat().st_atime_ns, source.stat().st_mtime_ns
    source.write_text("WORDS")
    os.utime(source, ns=times)
    assert look(source, output).is_done


def test_a_stage_may_ask_more_of_its_manifests(source: Path, output: Path) -> None:
    said(shout(source, output))

    def read(path: Path) -> dict[str, Any] | None:
        manifest = read_manifest(path)
        return manifest if manifest and manifest["counts"].get("characters", 0) > 5 else None

    run = StageRun("shout", output, read=read)
    run.compare(ARGUMENTS, {"source": describe(source)})
    assert (run.reasons, run.known, run.counts) == (["not done yet"], {}, {})


def test_the_lines_of_a_stage_that_does_several_things_say_which(
    source: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(shout(source, output))
    run = StageRun("shout", output, label="loud")
    run.compare(ARGUMENTS, {"source": describe(source)})
    run.say_done(of="one on two", because="three is there")
    assert capsys.readouterr().out == "loud: one on two: done already, nothing to do (three is there)\n"


# --- the manifest


def test_the_manifest_says_what_was_done(source: Path, output: Path) -> None:
    started = int(time.time())
    said(shout(source, output))
    manifest = json.loads(manifest_of(output).read_text())
    assert (manifest["stage"], manifest["arguments"], manifest["counts"]) == ("shout", ARGUMENTS, {"characters": 5})
    assert manifest["inputs"]["source"]["sha256"] == describe(source)["sha256"]
    assert manifest["outputs"]["text"] == {**describe(output), "path": "out.jsonl"}
    assert manifests.timestamp(started) <= manifest["started"] <= manifest["finished"]


def test_the_manifest_of_a_folder_can_appear_together_with_it(source: Path, tmp_path: Path) -> None:
    folder, draft = tmp_path / "folder", tmp_path / "draft"
    draft.mkdir()
    (draft / "text").write_text("WORDS")
    look(source, folder).finish({"dataset": draft}, {}, within=draft)
    assert not folder.exists()
    draft.rename(folder)
    assert look(source, folder).is_done
    (folder / "text").write_text("SWORD")
    assert look(source, folder).reasons == ["the output dataset is gone or was changed"]


def test_a_described_output_is_taken_as_it_is_described(source: Path, tmp_path: Path) -> None:
    """Only the weights of a checkpoint are described, because an evaluation may write results beside them."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "weights").write_text("1")
    (folder / "log").write_text("a")
    look(source, folder).finish({"weights": describe(folder, files=[folder / "weights"])}, {})
    (folder / "log").write_text("b")
    assert look(source, folder).is_done


def test_a_mistake_in_the_work_leaves_no_manifest_and_no_lock(source: Path, output: Path) -> None:
    with pytest.raises(UserError, match="no words"), StageRun("shout", output) as run:
        run.compare(ARGUMENTS, {"source": describe(source)})
        raise UserError("no words")
    assert not manifest_of(output).exists()
    with if_free(output) as free:
        assert free


def test_work_that_ends_before_its_end_leaves_no_manifest(source: Path, output: Path) -> None:
    """A stage ends like this after SIGTERM, before it is requeued."""
    with pytest.raises(SystemExit), StageRun("shout", output) as run:
        run.compare(ARGUMENTS, {"source": describe(source)})
        output.write_text("WOR")
        sys.exit(75)
    assert look(source, output).reasons == ["not done yet"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_between_output_and_manifest_it_is_not_done(source: Path, output: Path, number: int) -> None:
    running = shout(source, output, "dwell")
    assert running.stdout.readline() == "written\n"
    running.send_signal(number)
    running.communicate()
    assert output.read_text() == "WORDS"
    assert look(source, output).reasons == ["not done yet"]
    assert said(shout(source, output)) == ["made"]
    assert look(source, output).is_done


def test_killed_while_it_is_made_again_the_old_manifest_does_not_vouch_for_it(source: Path, output: Path) -> None:
    said(shout(source, output))
    source.write_text("other")
    running = shout(source, output, "dwell")
    assert running.stdout.readline().startswith("shout: runs again")
    assert running.stdout.readline() == "written\n"
    running.kill()
    running.communicate()
    source.write_text("words")  # as it was at first, but the output is not
    assert look(source, output).reasons == ["the output text is gone or was changed"]


# --- the locks


def test_the_second_waits_for_the_first_and_finds_the_work_done(source: Path, output: Path) -> None:
    first = shout(source, output, "dwell")
    assert first.stdout.readline() == "written\n"
    second = shout(source, output)
    assert second.stdout.readline().startswith(f"waiting for {output}, held by ")
    first.stdin.close()
    assert second.stdout.readline().startswith("shout: done already, nothing to do")
    assert (first.wait(), second.wait()) == (0, 0)
    assert not lock_file(output).exists()


def test_all_that_is_named_is_locked_and_nothing_else(tmp_path: Path) -> None:
    output, other = tmp_path / "folder", tmp_path / "other"
    with StageRun("shout", output, locks=[other]):
        assert (lock_file(other).exists(), lock_file(output).exists()) == (True, False)
    with locked(StageRun("shout", output), StageRun("shout", other, locks=[other, tmp_path / "more"])):
        names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".folder.lock", ".more.lock", ".other.lock"]
    assert not list(tmp_path.iterdir())


def test_what_was_read_before_the_lock_is_read_again_within(source: Path, output: Path) -> None:
    run = look(source, output)
    assert run.manifest is None
    said(shout(source, output))
    with run:
        assert not run.is_done  # as it was compared
        run.compare_again()
        assert run.is_done


def test_the_time_before_the_lock_is_not_the_stage_s(source: Path, output: Path) -> None:
    run = StageRun("shout", output)
    run.started -= 100
    with run:
        assert run.seconds < 50
        run.compare(ARGUMENTS, {"source": describe(source)})
    run.started -= 100
    with run:  # the work began before
        assert run.seconds > 50


# --- several processes


class Worker(OneProcess):
    """One of several processes. It gets the result of the first one."""

    def __init__(self, first: bool, found: list[Any]):
        self.first, self.found = first, found

    def is_first(self) -> bool:
        return self.first

    def say(self, text: str) -> None:
        if self.first:
            super().say(text)

    def from_first(self, work: Callable[[], Any]) -> Any:
        if self.first:
            self.found.append(work())
        return self.found[-1]

    @contextmanager
    def only_writer(self, *outputs: Path) -> Iterator[None]:
        if not self.first:
            yield
            return
        with super().only_writer(*outputs):
            yield


def test_of_several_processes_the_first_looks_and_writes_and_all_agree(
    source: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Any] = []
    elsewhere = tmp_path / "not mounted" / "out.jsonl"  # a node that does not see the output finds the same
    first = StageRun("shout", output, processes=Worker(True, found))
    other = StageRun("shout", elsewhere, processes=Worker(False, found))
    inputs = {"source": describe(source)}
    with first, other:
        for run in (first, other):
            run.compare(ARGUMENTS, inputs)
        assert first.reasons == other.reasons == ["not done yet"]
        output.write_text("WORDS")
        for run in (other, first):
            run.finish({"text": output}, {})
        for run in (first, other):
            run.compare_again()
            assert run.is_done
            run.say_done()
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not elsewhere.parent.exists()
    assert look(source, output).is_done


# --- the stages


def test_no_stage_spells_out_by_itself_what_a_run_does() -> None:
    """The stages do not write manifests, compare them with their work, or print that nothing is to do by themselves."""
    package = Path(manifests.__file__).parents[1]
    words = re.compile(r"\bwrite_manifest\b|\bmanifests\.changes\b|import .*\bchanges\b|: done already")
    found = [
        f"{path.relative_to(package)}, line {number}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if path.parent.name != "core"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if words.search(line)
    ]
    assert found == []
