"""Records and the files that hold them: mistakes are named by file and line, and a file appears whole or not at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from teacherlm.core.errors import UserError
from teacherlm.core.files import set_aside, whole_file, whole_folder
from teacherlm.core.outputs import require_writable
from teacherlm.core.records import drop_torn_line, read_records, write_records

DAY = 24 * 3600


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "samples.jsonl"


def mistake(file: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_records(file))
    return str(caught.value)


@pytest.mark.parametrize(
    "line",
    [b'{"a": 1', b"[1, 2]", b'"text"', b"7", b"null", b"{'a': 1}", b'{"a": "\xff"}', b'{"a": 1}{"a": 2}'],
    ids=["broken", "list", "text", "number", "null", "python", "latin-1", "two objects"],
)
def test_a_line_that_is_no_json_object_is_named_by_file_and_line(file: Path, line: bytes) -> None:
    file.write_bytes(b'{"a": 1}\n\n{"a": 2}\n' + line + b'\n{"a": 3}\n')
    assert mistake(file).startswith(f"{file}, line 4: one JSON object in UTF-8 was expected")


def test_a_mistake_shows_the_beginning_of_the_line(file: Path) -> None:
    file.write_text('{"sentence": "' + "x" * 1000)
    assert '{"sentence": "xxx' in mistake(file)
    assert len(mistake(file)) < len(str(file)) + 200


def test_the_records_before_a_broken_line_are_read(file: Path) -> None:
    file.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    records = read_records(file)
    assert [next(records), next(records)] == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize("content", ["", "\n", " \n\t\n\r\n"], ids=["no byte", "one break", "blanks"])
def test_a_file_without_records_is_empty(file: Path, content: str) -> None:
    file.write_text(content)
    assert mistake(file) == f"{file}: empty; at least one record was expected"


def test_a_missing_file_is_named(file: Path) -> None:
    assert mistake(file).startswith(f"{file}: no such file")


def test_a_folder_is_no_file_of_records(tmp_path: Path) -> None:
    assert mistake(tmp_path).startswith(f"{tmp_path}: no such file")


def test_blank_lines_are_passed_over_and_counted(file: Path) -> None:
    file.write_text('\n{"a": 1}\n  \n\r\n{"a": 2}')
    assert list(read_records(file)) == [(2, {"a": 1}), (5, {"a": 2})]


def test_a_byte_order_mark_is_no_part_of_the_first_record(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert list(read_records(file)) == [(1, {"a": 1}), (2, {"a": 2})]


def test_what_is_written_is_read_again(file: Path) -> None:
    records = [{"text": 'Comăneci 体操\u2028\u0085\t"quoted"\n', "n": 1.5, "none": None, "list": [[7, 11]]}, {}]
    assert write_records(file, iter(records)) == 2
    assert [record for _, record in read_records(file)] == records


def test_text_that_is_not_ascii_stays_readable_in_the_file(file: Path) -> None:
    write_records(file, [{"entity": "Nadia Comăneci"}])
    assert file.read_text(encoding="utf-8") == '{"entity": "Nadia Comăneci"}\n'


def test_a_source_that_fails_leaves_the_old_records(file: Path) -> None:
    write_records(file, [{"a": "old"}])
    with pytest.raises(ZeroDivisionError):
        write_records(file, ({"a": 1 // n} for n in (1, 0)))
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    assert file.read_text() == '{"a": "old"}\n'


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b'{"a": 1}\n{"a": 2}\n', b'{"a": 1}\n{"a": 2}\n'),
        (b'{"a": 1}\n{"a"', b'{"a": 1}\n'),
        (b'{"a": 1}', b""),
        (b"", b""),
        (b'{"a": 1}\n' + b"x" * 200_000, b'{"a": 1}\n'),
        (b"x" * 65_535 + b"\n" + b"y" * 65_536, b"x" * 65_535 + b"\n"),
    ],
    ids=["whole", "torn", "one torn", "empty", "longer than a block", "break at a block's edge"],
)
def test_a_torn_last_line_is_dropped(file: Path, content: bytes, kept: bytes) -> None:
    file.write_bytes(content)
    assert drop_torn_line(file) == len(content) - len(kept)
    assert file.read_bytes() == kept


def run_killed(block: str, path: Path) -> None:
    """Run a block of code on `path` in a process that dies at once where the block says `die()`."""
    code = "import os, sys\nfrom pathlib import Path\nfrom teacherlm.core.files import *\n"
    code += f"path = Path(sys.argv[1])\n{block}"
    done = subprocess.run([sys.executable, "-c", code.replace("die()", "os._exit(9)"), path], timeout=60)
    assert done.returncode == 9


def test_a_kill_while_a_file_is_written_leaves_the_old_one(file: Path) -> None:
    file.write_text("old")
    run_killed("with whole_file(path) as file:\n    file.write('new')\n    file.flush()\n    die()", file)
    assert file.read_text() == "old"


def test_a_kill_while_a_folder_is_filled_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "CREAK"
    folder.mkdir()
    (folder / "old").touch()
    run_killed("with whole_folder(path) as whole:\n    (whole / 'new').write_text('half')\n    die()", folder)
    assert [entry.name for entry in folder.iterdir()] == ["old"]


def test_who_reads_while_a_file_is_replaced_reads_the_old_one_to_its_end(file: Path) -> None:
    file.write_text("old")
    with open(file) as reader:
        with whole_file(file) as handle:
            handle.write("new and longer")
        assert (reader.read(), file.read_text()) == ("old", "new and longer")


def test_a_whole_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "CREAK"
    for name in ("first", "second"):
        with whole_folder(folder) as whole:
            (whole / name).write_text(name)
    assert [entry.relative_to(tmp_path / "deep").as_posix() for entry in (tmp_path / "deep").rglob("*")] == [
        "CREAK",
        "CREAK/second",
    ]


def test_a_folder_whose_filling_fails_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "CREAK") as whole:
        (whole / "half").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leftovers_older_than_a_day_are_removed_and_younger_ones_kept(file: Path) -> None:
    """A temporary file of a running process must not be removed. Temporary files of other outputs stay too."""
    run_killed("with whole_file(path):\n    die()", file)
    run_killed("with whole_folder(path) as whole:\n    (whole / 'part').touch()\n    die()", file)
    run_killed("with whole_file(path.with_name('other')):\n    die()", file)
    old = list(file.parent.iterdir())
    assert len(old) == 3
    for leftover in old:
        os.utime(leftover, (time.time() - DAY - 60,) * 2)
    run_killed("with whole_file(path):\n    die()", file)
    [young] = set(file.parent.iterdir()) - set(old)
    with whole_file(file) as handle:
        handle.write("new")
    other = next(leftover for leftover in old if leftover.name.startswith(".other."))
    assert set(file.parent.iterdir()) == {file, young, other}


def test_setting_aside_keeps_everything(file: Path) -> None:
    kept = []
    for text in ("first", "second", "third"):  # within a second, so the names must differ by more than the time
        file.write_text(text)
        kept.append(set_aside(file))
    assert [old.read_text() for old in kept] == ["first", "second", "third"]
    assert not file.exists()


def test_nothing_is_set_aside_where_nothing_is(file: Path) -> None:
    assert set_aside(file) is None


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("place", ["below a file", "/proc"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "runs" if place == "below a file" else Path("/proc/teacherlm-runs")
    with pytest.raises(UserError, match=r"cannot be written .*choose another output folder") as caught:
        require_writable(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        require_writable(tmp_path)
