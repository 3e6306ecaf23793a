"""The lock beside an output: one holder at a time among processes that really run at once, whatever happens to one."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from teacherlm.core import progress_file
from teacherlm.core.errors import UserError
from teacherlm.core.lock import if_free, lock_file, one_writer
from teacherlm.core.progress_file import ProgressFile

COUNT = """
import sys, time
from pathlib import Path
from teacherlm.core.lock import one_writer
file = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    with one_writer(file):
        number = int(file.read_text()) if file.exists() else 0
        time.sleep(0.0005)
        file.write_text(str(number + 1))
"""
HOLD = """
import sys, time
from pathlib import Path
from teacherlm.core.lock import one_writer
with one_writer(*map(Path, sys.argv[1:])):
    print("has it", flush=True)
    sys.stdin.read()
"""


def python(code: str, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True)


def test_four_processes_count_without_losing_one(tmp_path: Path) -> None:
    """Each process reads, waits and writes for each count, while the lock's file is removed and created 200 times."""
    counting = [python(COUNT, tmp_path / "count", 50) for _ in range(4)]
    for process in counting:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert (tmp_path / "count").read_text() == "200"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_only_its_user_reads_the_command_in_a_lock(tmp_path: Path) -> None:
    with one_writer(tmp_path / "out.jsonl"):
        assert "command" in json.loads(lock_file(tmp_path / "out.jsonl").read_text())
        assert lock_file(tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600


def test_who_waits_says_once_for_whom(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    holder = python(HOLD, output)
    assert holder.stdout.readline() == "has it\n"
    who = json.loads(lock_file(output).read_text())
    waiting = python(HOLD, output)
    line = waiting.stdout.readline()
    assert line.startswith(
        f"waiting for {output}, held by {os.uname().nodename} pid {holder.pid} since {who['since']} "
    )
    with if_free(output) as free:
        assert not free
    holder.stdin.close()
    assert waiting.stdout.readline() == "has it\n"
    waiting.stdin.close()
    assert (holder.wait(), waiting.wait()) == (0, 0)
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_holds_no_more(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    holder = python(HOLD, output)
    holder.stdout.readline()
    waiting = python(HOLD, output)
    waiting.stdout.readline()
    holder.send_signal(signal.SIGKILL)
    assert waiting.stdout.readline() == "has it\n"
    waiting.send_signal(signal.SIGKILL)
    waiting.wait()
    assert lock_file(output).exists()  # the kill leaves it, and it does not block
    with if_free(output) as free:
        assert free
    assert not lock_file(output).exists()


def test_two_outputs_named_in_any_order_do_not_deadlock(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for _ in range(3):
        processes = [python(HOLD, *pair) for pair in ((one, other), (other, one))]
        for process in processes:
            process.stdin.close()
        assert [process.wait(timeout=60) for process in processes] == [0, 0]


def test_a_link_and_its_target_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to("target.jsonl")
    (tmp_path / "target.jsonl").touch()
    holder = python(HOLD, tmp_path / "link.jsonl")
    holder.stdout.readline()
    with if_free(tmp_path / "target.jsonl") as free:
        assert not free
    holder.communicate()


def test_a_process_may_take_what_it_holds_and_a_fork_does_not_free_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with one_writer(output):
        with one_writer(output, output):
            pass
        child = os.fork()
        if not child:
            with if_free(output) as free:
                os._exit(int(free))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        other = python(HOLD, output)
        assert other.stdout.readline().startswith("waiting for ")
    assert other.stdout.readline() == "has it\n"
    other.communicate()


def test_a_signal_ends_the_waiting(tmp_path: Path) -> None:
    holder = python(HOLD, tmp_path / "out")
    holder.stdout.readline()
    waiting = python(HOLD, tmp_path / "out")
    waiting.stdout.readline()
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=20) == -signal.SIGINT
    assert holder.poll() is None
    holder.communicate()


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre without `flock` answers ENOSYS to fcntl; none of the file systems here does."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(UserError, match="has no file locks"), one_writer(tmp_path / "out"):
        pass


APPEND = """
import sys
from pathlib import Path
from teacherlm.core.progress_file import ProgressFile
progress = ProgressFile(Path(sys.argv[1]), {"seed": 0}, restart=False)
progress.append(0, {"text": "mine"})
print("has it", flush=True)
sys.stdin.read()
"""


def test_a_progress_file_is_appended_to_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".out.progress"
    other = python(APPEND, path)
    assert other.stdout.readline() == "has it\n"
    before = path.read_bytes()
    monkeypatch.setattr(progress_file, "KILLED_SECONDS", 0.2)
    with pytest.raises(UserError, match="another process is writing to this file"):
        ProgressFile(path, {"seed": 0}, restart=True)
    assert path.read_bytes() == before
    other.kill()
    other.wait()
    progress = ProgressFile(path, {"seed": 0}, restart=False)
    assert progress.read(0) == {"text": "mine"}


def test_what_is_read_back_is_of_its_key(tmp_path: Path) -> None:
    """Somebody edits the file while it is used, and replaces a line by another one of the same length."""
    path = tmp_path / ".out.progress"
    progress = ProgressFile(path, {"seed": 0}, restart=False)
    for key in range(3):
        progress.append(key, {"text": "abc"})
    path.write_bytes(path.read_bytes().replace(b'"key": 1', b'"key": 7'))
    assert progress.read(0) == {"text": "abc"}
    with pytest.raises(UserError, match="piece 1 is not where it was written, so another program changed this file"):
        progress.read(1)
