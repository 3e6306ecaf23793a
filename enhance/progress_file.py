"""What the teacher has written so far, on disk: one line a completion, appended as they finish, in any order.

The first line says what the work is. A restart reads it, refuses to go on with other work, drops a line that a crash
tore, and does what is missing. At the end the completions are joined with the input's records, in input order.
"""

import json
import os
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from teacherlm.errors import UserError
from teacherlm.files import set_aside
from teacherlm.records import drop_torn_line, dump_line

FLUSH_SECONDS = 1.0
"""A crash of the machine costs the completions of so many seconds; one of the program costs none of them."""


class ProgressFile:
    """An append-only file of completions, found by their key: a number from 0.

    Memory: eight bytes a completion.

    Args:
        path: of the file; it is made when missing.
        work: what is being done: arguments and digests, JSON values. A file of other work is not touched.
        restart: set a file of other work aside instead of refusing.

    Raises:
        UserError: the file belongs to other work (what differs is named) and restart is not set.
    """

    def __init__(self, path: Path, work: Mapping[str, Any], restart: bool):
        self.path = path
        self.offsets = array("q")
        self.count = 0
        if path.exists() and path.stat().st_size:
            dropped = drop_torn_line(path)
            if dropped:
                print(f"{path}: the last line was torn by an interruption ({dropped} bytes), dropped")
            differing = self.differences(work)
            if differing and not restart:
                raise UserError(
                    f"{path}: begun with other settings: {'; '.join(differing)}; use the same ones to continue, or "
                    "--restart to begin anew (the old file is kept)"
                )
            if differing:
                print(f"{path}: begun with other settings ({'; '.join(differing)}), kept as {set_aside(path)}")
        if not path.exists() or not path.stat().st_size:
            path.write_text(dump_line({"work": dict(work)}) + "\n", encoding="utf-8")
        self.index()
        self.file = open(path, "ab")
        self.synced = time.monotonic()

    def differences(self, work: Mapping[str, Any]) -> list[str]:
        with open(self.path, "rb") as file:
            line = file.readline()
        if not line:
            return []
        try:
            old = json.loads(line)["work"]
        except (ValueError, KeyError, TypeError):
            return ["its first line is not of this program"]
        keys = sorted({*old, *work})
        return [f"{key} was {old.get(key)!r}, is {work.get(key)!r}" for key in keys if old.get(key) != work.get(key)]

    def index(self) -> None:
        """Remember where each completion lies. A line that is none (a disk's fault) ends what is trusted."""
        with open(self.path, "rb+") as file:
            file.readline()
            self.end = file.tell()
            for line in file:
                try:
                    key = json.loads(line)["key"]
                except (ValueError, KeyError, TypeError):
                    print(f"{self.path}: from byte {self.end} on it cannot be read, dropped")
                    file.truncate(self.end)
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

    def append(self, key: int, completion: Mapping[str, Any]) -> None:
        """Append one completion; it is the kernel's at once and on the disk within FLUSH_SECONDS."""
        line = (dump_line({"key": key, **completion}) + "\n").encode()
        self.file.write(line)
        self.file.flush()
        self.remember(key, self.end)
        self.end += len(line)
        if time.monotonic() - self.synced > FLUSH_SECONDS:
            os.fsync(self.file.fileno())
            self.synced = time.monotonic()

    def read(self, key: int) -> dict[str, Any]:
        """The completion of that key, as it was appended."""
        self.reader.seek(self.offsets[key])
        return json.loads(self.reader.readline())

    def close(self) -> None:
        """End writing; `read` is possible from now on."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.reader = open(self.path, "rb")

    def remove(self) -> None:
        self.reader.close()
        self.path.unlink()
