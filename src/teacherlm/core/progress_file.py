"""What is done so far of a long work, on disk: one line a piece (a completion, a batch), appended in any order.

The first line says what the work is. A restart reads it, refuses to go on with other work, drops a line that a crash
tore, and does what is missing. At the end the completions are joined with the input's records, in input order.
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

FLUSH_SECONDS = 1.0
"""A crash of the machine costs the pieces of so many seconds; one of the program costs none of them."""


MOST_PIECES = 2**28
"""More than any work has: a key beyond it is none, and would take its eight bytes for each one below it."""
KILLED_SECONDS = 30
"""How long a killed process may take to vanish: its last writes may have to go to a slow disk."""


class ProgressFile:
    """An append-only file of pieces (completions, batches), found by their key: a number from 0.

    Memory: eight bytes a piece. The file is locked (see lock.py) until it is closed: two processes never append to one.

    Args:
        path: of the file; it is made when missing.
        work: what is being done: arguments and digests, JSON values. A file of other work is not touched.
        restart: set a file of other work aside instead of refusing.

    Raises:
        UserError: another process appends to the file, or it belongs to other work (what differs is named) and restart
            is not set.
    """

    def __init__(self, path: Path, work: Mapping[str, Any], restart: bool):
        self.path = path
        self.offsets = array("q")
        self.count = 0
        self.open()
        if dropped := cut_torn_line(self.file):
            print(f"{path}: the last line was torn by an interruption ({dropped} bytes), dropped")
        if differing := self.differences(work):
            if not restart:
                raise UserError(
                    f"{path}: begun with other settings: {'; '.join(differing)}; use the same ones to continue, or "
                    "--restart to begin anew (the old file is kept)"
                )
            print(f"{path}: begun with other settings ({'; '.join(differing)}), kept as {set_aside(path)}")
            self.open()
        if not self.file.seek(0, os.SEEK_END):
            self.file.write((dump_line({"work": dict(work)}) + "\n").encode())
            self.file.flush()
        self.index()
        self.reader = open(path, "rb")  # closed after `file`: closing any descriptor of a file frees its locks
        self.synced = time.monotonic()

    def open(self) -> None:
        """Open the file for appending, and lock it.

        A killed process loses its locks one after the other, so that of the output may be free before this one.

        Raises:
            UserError: another process appends to it, or a link stands where it is to be.
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
            return ["its first line is not of this program"]
        keys = sorted({*old, *work})
        return [f"{key} was {old.get(key)!r}, is {work.get(key)!r}" for key in keys if old.get(key) != work.get(key)]

    def index(self) -> None:
        """Remember where each piece lies. A line that is none (a disk's fault) ends what is trusted."""
        self.file.seek(0)
        self.end = len(self.file.readline())
        for line in self.file:
            try:
                key = parse_bounded(line)["key"]
                if type(key) is not int or not 0 <= key < MOST_PIECES:
                    raise ValueError(f"no key: {key!r}")
            except (ValueError, KeyError, TypeError):
                print(f"{self.path}: from byte {self.end} on it cannot be read, dropped")
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
        """Append one piece; it is the kernel's at once and on the disk within FLUSH_SECONDS."""
        line = (dump_line({"key": key, **piece}) + "\n").encode()
        self.file.write(line)
        self.file.flush()
        self.remember(key, self.end)
        self.end += len(line)
        if time.monotonic() - self.synced > FLUSH_SECONDS:
            os.fsync(self.file.fileno())
            self.synced = time.monotonic()

    def read(self, key: int) -> dict[str, Any]:
        """What was appended under that key.

        Raises:
            UserError: the file was changed by somebody else: what stands there is not the piece of that key.
        """
        self.reader.seek(self.offsets[key])
        line = self.reader.readline()
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            piece: dict[str, Any] = parse_bounded(line)
            if piece.pop("key") == key:
                return piece
        raise UserError(
            f"{self.path}: piece {key} is not where it was written: something else changed this file; remove it and "
            "run the same command again"
        )

    def close(self) -> None:
        """End writing; `read` goes on."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def remove(self) -> None:
        self.reader.close()
        self.path.unlink(missing_ok=True)


def peek(path: Path, work: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """What another process has appended so far to its file of the same work; nothing, if it is other work's."""
    return dict(pieces(path, work))


def done_keys(path: Path, work: Mapping[str, Any]) -> set[int]:
    """The keys of what `peek` would give, without holding it."""
    return {key for key, _ in pieces(path, work)}


def pieces(path: Path, work: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open_ordinary(path) as file:
        if parse_bounded(file.readline())["work"] != dict(work):
            return
        for line in file:  # the last may be half there: it ends the loop
            piece = parse_bounded(line)
            yield piece.pop("key"), piece
