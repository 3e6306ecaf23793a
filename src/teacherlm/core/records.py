"""Records: JSON lines files with one object per line. Messages about mistakes name the file, the line and the field."""

import contextlib
import gzip
import io
import itertools
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import jsonlines

from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.json_files import has_more_parts
from teacherlm.core.limits import JSON_DEPTH, JSON_PARTS, JSON_VALUES, LINE_BYTES, UNPACKED_BYTES, UNPACKED_TIMES
from teacherlm.core.opening import open_ordinary
from teacherlm.core.terminal import shown

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Record = dict[str, Any]

COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".zst": zstd.open}
"""File name ending -> the function that opens such a compressed file."""


class Flaw(Exception):
    """What is wrong with a record. Its text follows the record's place in a message."""


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading. A file whose name ends with .gz or .zst is unpacked while it is read.

    Raises:
        UserError: the archive is cut off or damaged, or unpacks to far more than text does. It is raised when reading
            reaches that point.
    """
    opener = COMPRESSED.get(path.suffix)
    try:
        with open_ordinary(path) as file:
            if opener is None:
                yield file
                return
            with opener(file, "rb") as unpacked, io.BufferedReader(Bounded(unpacked, path), 2**17) as bounded:
                yield bounded
    except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
        raise UserError(f"{path}: this archive is cut off or damaged ({error}); pack or copy it again") from error


class Bounded(io.RawIOBase):
    """The unpacked bytes of a compressed file, up to a limit (see UNPACKED_TIMES).

    Args:
        unpacked: the file that unpacks.
        path: the path of the compressed file.
    """

    def __init__(self, unpacked: IO[bytes], path: Path):
        self.unpacked, self.path = unpacked, path
        self.most = max(UNPACKED_BYTES, UNPACKED_TIMES * path.stat().st_size)
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.unpacked.read(len(buffer))
        self.count += len(data)
        if self.count > self.most:
            raise UserError(
                f"{self.path}: it unpacks to more than {self.most:,} bytes, far more than text of this size does; if "
                "the file is right, unpack it first"
            )
        buffer[: len(data)] = data
        return len(data)


def parse_json(text: str, most: int = JSON_VALUES, most_parts: int = JSON_PARTS) -> Any:
    """The value of a JSON text. A name that is twice in an object is refused; Python's reader would keep the last one.

    Args:
        most: the maximum number of lists and objects.
        most_parts: the maximum number of values of all types.

    Raises:
        ValueError: the text is not JSON.
        Flaw: the text is JSON, but cannot be a record.
    """
    if len(text) > most and text.count("[") + text.count("{") > most:
        raise Flaw(f"more than {most:,} lists and objects")
    if has_more_parts(text, most_parts):
        raise Flaw(f"more than {most_parts:,} values")
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise Flaw(f"nested more than {JSON_DEPTH} levels deep; make it flat") from None


def unique(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Flaw(f"the field {shown(name)} occurs twice in one object; remove or rename one")
            seen.add(name)
    return record


DECODER = json.JSONDecoder(object_pairs_hook=unique, parse_int=lambda digits: int(digits[:99]))
"""The first 99 digits of a whole number show that it exceeds 64 bits. Python refuses numbers of thousands of digits."""


def check_record(record: Record) -> None:
    """Refuse values that JSON in UTF-8 or Arrow cannot hold, before they cause an error in the middle of the work.

    Raises:
        Flaw: its text names the field.
    """
    for name, value in record.items():
        if type(value) is str and value.isascii() and name.isidentifier() and name.isascii():
            continue
        flaw = flaw_of_name(name) or flaw_of(value)
        if flaw:
            raise Flaw(f"the field {shown(name)} {flaw}")


def checked(record: Record, where: str) -> Record:
    """Return the record, after checking that JSON in UTF-8 and Arrow can hold it.

    Args:
        where: the record's place, for messages.

    Raises:
        UserError: they cannot hold it; the message names the field.
    """
    try:
        check_record(record)
    except Flaw as flaw:
        raise UserError(f"{where}: {flaw}") from None
    return record


def flaw_of(value: Any, depth: int = 1) -> str | None:
    kind = type(value)
    if kind is str:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(value[error.start]):04x}"
                return f"has {half}, half of a surrogate pair, which is not a character; remove it"
    elif kind is int:
        if not -(2**63) <= value < 2**63:
            return "is a whole number that exceeds 64 bits; put it in quotes"
    elif kind is float:
        if not math.isfinite(value):
            return f"is {value}, which is not a number in JSON; make it null or a text"
    elif kind is list or kind is dict:
        if depth > JSON_DEPTH:
            return f"is nested more than {JSON_DEPTH} levels deep; make it flat"
        flaws = map(flaw_of_name, value) if kind is dict else iter(())
        parts = value if kind is list else value.values()
        return next(filter(None, itertools.chain(flaws, (flaw_of(part, depth + 1) for part in parts))), None)
    elif value is not None and kind is not bool:
        return f"is of the type {kind.__name__}, which JSON does not have; make it a text"
    return None


def flaw_of_name(name: str) -> str | None:
    return "has \\u0000 in a name, at which Arrow cuts the name; rename it" if "\0" in name else flaw_of(name)


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line number from 1, record) for each record of a JSON lines file. Blank lines are skipped.

    Raises:
        UserError: the file is missing, empty or a damaged archive, or a line is not a JSON object that can be a record.
            The message has the line's number and what was found.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; a JSON lines file was expected")
    number = found = 0

    def lines() -> Iterator[bytes]:
        nonlocal number
        with open_bytes(path) as file:
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                if len(line) > LINE_BYTES:
                    raise Flaw(f"a line of at most {LINE_BYTES:,} bytes was expected; is this a JSON lines file?")
                yield line

    reader = jsonlines.Reader(lines(), loads=parse_json)
    try:
        while True:
            record = reader.read(type=dict, skip_empty=True)
            check_record(record)
            found += 1
            yield number, record
    except EOFError:
        if not found:
            raise UserError(f"{path}: empty; at least one record was expected") from None
    except jsonlines.InvalidLineError as error:
        line = error.line if isinstance(error.line, str) else error.line.decode("utf-8", "backslashreplace")
        raise UserError(
            f"{path}, line {number}: one JSON object in UTF-8 was expected, found {shown(line.strip())}; "
            "fix or remove this line"
        ) from error
    except Flaw as flaw:
        raise UserError(f"{path}, line {number}: {flaw}") from None


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write records as JSON lines, completely or not at all; return the number of records."""
    count = 0
    with whole_file(path) as file, jsonlines.Writer(file, dumps=dump_line) as writer:
        for record in records:
            writer.write(record)
            count += 1
    return count


def dump_line(record: Any) -> str:
    """One record as JSON, in which non-ASCII text stays readable."""
    return json.dumps(record, ensure_ascii=False)


def drop_torn_line(path: Path) -> int:
    """Cut off the incomplete line after the last line break, which a crash left. Return the number of bytes dropped."""
    with open(path, "rb+") as file:
        return cut_torn_line(file)


def cut_torn_line(file: IO[bytes]) -> int:
    """`drop_torn_line` for a file that is open for reading and writing."""
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
