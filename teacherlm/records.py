"""Records: JSON lines on disk, one object a line. Every mistake is named by file and line."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonlines

from teacherlm.errors import UserError
from teacherlm.files import whole_file

Record = dict[str, Any]


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line number from 1, record) of a JSON lines file, one at a time. Blank lines are passed over.

    Raises:
        UserError: the file is missing or empty, or a line is no JSON object (with its number and what was found).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; a JSON lines file was expected")
    number = found = 0

    def lines() -> Iterator[bytes]:
        nonlocal number
        with open(path, "rb") as file:
            for line in file:
                number += 1
                yield line

    reader = jsonlines.Reader(lines())
    try:
        while True:
            record = reader.read(type=dict, skip_empty=True)
            found += 1
            yield number, record
    except EOFError:
        if not found:
            raise UserError(f"{path}: empty; at least one record was expected") from None
    except jsonlines.InvalidLineError as error:
        line = error.line if isinstance(error.line, str) else error.line.decode("utf-8", "backslashreplace")
        raise UserError(
            f"{path}, line {number}: one JSON object in UTF-8 was expected, found {line.strip()[:60]!r}; "
            "mend or remove this line"
        ) from error


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records as JSON lines, whole or not at all; returns how many there were."""
    count = 0
    with whole_file(path) as file, jsonlines.Writer(file, dumps=dump_line) as writer:
        for record in records:
            writer.write(record)
            count += 1
    return count


def dump_line(record: Any) -> str:
    """One record as JSON: non-ASCII text stays readable."""
    return json.dumps(record, ensure_ascii=False)


def drop_torn_line(path: Path) -> int:
    """Cut off what follows the last line break: a write that a crash interrupted. Returns the bytes dropped."""
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        file.truncate(end)
        return size - end
