"""What the teacher has written so far, on disk: one line a completion, appended as they finish, in any order.

The first line says what the work is. A restart reads it, refuses to go on with other work, drops a line that a crash
tore, and does what is missing. At the end the completions are joined with the input's records, in input order.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from teacherlm.errors import UserError
from teacherlm.files import set_aside
from teacherlm.records import drop_torn_line, dump_line


class ProgressFile:
    """An append-only file of completions.

    Args:
        path: of the file; it is made when missing.
        work: what is being done: arguments and digests, JSON values. A file of other work is not touched.
        restart: set a file of other work aside instead of refusing.

    Raises:
        UserError: the file belongs to other work (what differs is named) and restart is not set.
    """

    def __init__(self, path: Path, work: Mapping[str, Any], restart: bool):
        self.path = path
        self.offsets: dict[int, int] = {}
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
        """Remember where each completion lies: some bytes a record, not the texts."""
        with open(self.path, "rb") as file:
            file.readline()
            offset = file.tell()
            for line in file:
                self.offsets[json.loads(line)["index"]] = offset
                offset += len(line)
        self.end = offset

    def __contains__(self, index: int) -> bool:
        return index in self.offsets

    def __len__(self) -> int:
        return len(self.offsets)

    def append(self, completions: Iterator[dict[str, Any]]) -> None:
        """Append completions, each {"index": number of the record, ...}, and make them durable."""
        for completion in completions:
            line = (dump_line(completion) + "\n").encode()
            self.file.write(line)
            self.offsets[completion["index"]] = self.end
            self.end += len(line)
        self.file.flush()
        os.fsync(self.file.fileno())

    def read(self, indices: Iterator[int]) -> Iterator[dict[str, Any]]:
        """The completions of the records asked for, in that order."""
        with open(self.path, "rb") as file:
            for index in indices:
                file.seek(self.offsets[index])
                yield json.loads(file.readline())

    def remove(self) -> None:
        self.file.close()
        self.path.unlink()
