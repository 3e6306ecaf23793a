"""The progress of long work on disk: one line per piece (a completion, a batch), appended in any order.

The first line describes the work. A restarted stage reads the file, refuses to continue different work, drops an
incomplete last line, and does the missing pieces. At the end the completions are joined with the input's records, in
the input's order.
"""

import contextlib
import os
import time
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from teacherlm.core.errors import UserError
from teacherlm.core.files import set_aside
from teacherlm.core.json_files import parse_bounded
from teacherlm.core.lock import lock_descriptor
from teacherlm.core.opening import open_ordinary, open_unlinked
from teacherlm.core.records import cut_torn_line, dump_line
from teacherlm.core.terminal import plural

FLUSH_SECONDS = 1.0
"""Seconds between syncs to disk. A crash of the machine loses the pieces since the last sync; a crash of the program
loses none."""


MOST_PIECES = 2**28
"""Keys from here on are refused as damage: no work has so many pieces, and a key takes 8 bytes of memory for itself and
for each smaller key."""
KILLED_SECONDS = 30
"""Seconds to wait for a killed process to end, which may have to write its last data to a slow disk."""


class ProgressFile:
    """An append-only file of pieces (completions, batches). A piece is found by its key, a number from 0.

    It takes 8 bytes of memory per piece. The file is locked (see lock.py) until it is closed, so two processes never
    append to it.

    Args:
        path: the path of the file, which is created if it is missing.
        work: the JSON values that describe the work: arguments and digests. A file of different work is not changed.
        restart: rename a file of different work and begin a new one, instead of refusing. A file without pieces is
            begun anew in any case.

    Raises:
        UserError: another process appends to the file; or the file belongs to different work, the message names the
            differences, and `restart` is not set.
    """

    def __init__(self, path: Path, work: Mapping[str, Any], restart: bool):
        self.path = path
        self.offsets = array("q")
        self.count = 0
        self.open()
        if dropped := cut_torn_line(self.file):
            print(f"{path}: an interruption left the last line incomplete ({plural(dropped, 'byte')}); it is dropped")
        if differing := self.differences(work):
            if self.has_no_pieces():
                self.file.truncate(0)
            elif not restart:
                raise UserError(
                    f"{path}: begun with other settings: {'; '.join(differing)}; use the same settings to continue, or "
                    "--restart to begin again (the old file is kept)"
                )
            else:
                print(f"{path}: begun with other settings ({'; '.join(differing)}); it is kept as {set_aside(path)}")
                self.open()
        if not self.file.seek(0, os.SEEK_END):
            self.file.write((dump_line({"work": dict(work)}) + "\n").encode())
            self.file.flush()
        self.index()
        self.reader = open(path, "rb")  # closed only after `file`: closing any descriptor of a file frees its locks
        self.synced = time.monotonic()

    def open(self) -> None:
        """Open the file for appending, and lock it.

        A killed process loses its locks one after the other, so the output's lock may be free before this one.

        Raises:
            UserError: another process appends to the file, or the path is a link.
        """
        self.file = os.fdopen(open_unlinked(self.path, os.O_RDWR | os.O_APPEND), "a+b")
        end = time.monotonic() + KILLED_SECONDS
        while not (free := lock_descriptor(self.file.fileno(), self.path)) and time.monotonic() < end:
            time.sleep(0.05)
        if not free:
            raise UserError(f"{self.path}: another process is writing to this file; wait until it has ended")

    def differences(self, work: Mapping[str, Any]) -> list[str]:
        self.file.seek(0)
        line = self.file.readline()
        if not line:
            return []
        try:
            old = parse_bounded(line)["work"]
        except (ValueError, KeyError, TypeError):
            return ["this program did not write its first line"]
        keys = sorted({*old, *work})
        return [f"{key} was {old.get(key)!r}, is {work.get(key)!r}" for key in keys if old.get(key) != work.get(key)]

    def has_no_pieces(self) -> bool:
        """Whether the file is only the description of a work. `differences` has just read its first line."""
        self.file.seek(0)
        try:
            described = parse_bounded(self.file.readline())
        except ValueError:
            return False
        return isinstance(described, dict) and described.keys() == {"work"} and not self.file.read(1)

    def index(self) -> None:
        """Record the offset of each piece. The first line that cannot be read, and all lines after it, are dropped."""
        self.file.seek(0)
        self.end = len(self.file.readline())
        for line in self.file:
            try:
                key = parse_bounded(line)["key"]
                if type(key) is not int or not 0 <= key < MOST_PIECES:
                    raise ValueError(f"no key: {key!r}")
            except (ValueError, KeyError, TypeError):
                print(f"{self.path}: it cannot be read from byte {self.end} on; the rest is dropped")
                self.file.truncate(self.end)
                break
            self.remember(key, self.end)
            self.end += len(line)

    def remember(self, key: int, offset: int) -> None:
        if key >= len(self.offsets):
            self.offsets.extend([-1] * (key + 1 - len(self.offsets)))
        self.count += self.offsets[key] < 0
        self.offsets[key] = offset

    def __contains__(self, key: int) -> bool:
        return key < len(self.offsets) and self.offsets[key] >= 0

    def __len__(self) -> int:
        return self.count

    def append(self, key: int, piece: Mapping[str, Any]) -> None:
        """Append one piece. The kernel has it at once; the file is synced to disk at most once in FLUSH_SECONDS."""
        line = (dump_line({"key": key, **piece}) + "\n").encode()
        self.file.write(line)
        self.file.flush()
        self.remember(key, self.end)
        self.end += len(line)
        if time.monotonic() - self.synced > FLUSH_SECONDS:
            os.fsync(self.file.fileno())
            self.synced = time.monotonic()

    def read(self, key: int) -> dict[str, Any]:
        """The piece with that key.

        Raises:
            UserError: another program changed the file, and the piece is no longer at its offset.
        """
        self.reader.seek(self.offsets[key])
        line = self.reader.readline()
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            piece: dict[str, Any] = parse_bounded(line)
            if piece.pop("key") == key:
                return piece
        raise UserError(
            f"{self.path}: piece {key} is not where it was written, so another program changed this file; remove the "
            "file and run the same command again"
        )

    def close(self) -> None:
        """End writing. `read` still works."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def remove(self) -> None:
        self.reader.close()
        self.path.unlink(missing_ok=True)


def work_in(path: Path) -> dict[str, Any] | None:
    """The work that a file of progress belongs to, or None if there is no such file or its first line is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open_ordinary(path) as file:
        return dict(parse_bounded(file.readline())["work"])
    return None


def peek(path: Path, work: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The pieces that another process has appended to its file so far; none if the file is of different work."""
    return dict(pieces(path, work))


def done_keys(path: Path, work: Mapping[str, Any]) -> set[int]:
    """The keys of the pieces that `peek` returns, without keeping the pieces in memory."""
    return {key for key, _ in pieces(path, work)}


def pieces(path: Path, work: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open_ordinary(path) as file:
        if parse_bounded(file.readline())["work"] != dict(work):
            return
        for line in file:  # the last line may be incomplete: its error ends the loop
            piece = parse_bounded(line)
            yield piece.pop("key"), piece
