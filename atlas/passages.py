"""Passages: JSON lines {id, title, section, text}, kept as a memory-mapped Arrow file: no text fills memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from teacherlm.errors import UserError, shown
from teacherlm.files import cache_folder, whole_path
from teacherlm.records import Record, read_records

FIELDS = ("id", "title", "text")
SCHEMA = pa.schema([(name, pa.large_string()) for name in FIELDS])
ROWS = 16_384
"""Rows of a record batch, all but the last: a row is found by a division."""


class Passages:
    """The passages of an Arrow file, by their row."""

    def __init__(self, path: Path):
        try:
            self.reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if self.reader.schema != SCHEMA:
                raise UserError(f"{path}: columns {', '.join(FIELDS)} were expected; this is no file of passages")
            self.batches = [self.reader.get_batch(number) for number in range(self.reader.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: no whole Arrow file of passages ({error}); make or copy it again") from error
        self.path = path
        self.count = sum(batch.num_rows for batch in self.batches)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, str]:
        batch = self.batches[row // ROWS]
        return {name: batch.column(name)[row % ROWS].as_py() for name in FIELDS}

    def between(self, start: int, end: int) -> Iterator[dict[str, str]]:
        """The passages from row `start` to before `end`."""
        return (self[row] for row in range(start, end))


def read_passages(files: Sequence[Path], limit: int) -> Iterator[dict[str, str]]:
    """The passages of some files, one after the other; a section joins the title, as in the reference.

    Args:
        files: JSON lines.
        limit: at most so many; -1 for all.

    Raises:
        UserError: a passage has no id or text (file, line).
    """
    count = 0
    for file in files:
        for number, record in read_records(file):
            if count == limit:
                return
            count += 1
            yield checked(record, f"{file}, line {number}")


def checked(record: Record, where: str) -> dict[str, str]:
    if not isinstance(record.get("id"), str | int):
        raise UserError(f"{where}: the field 'id' is missing; a passage is {{id, title, section, text}}")
    for name in ("text", "title", "section"):
        value = record.get(name, "" if name != "text" else None)
        if not isinstance(value, str):
            state = f"must be a text, found {shown(value)}" if name in record else "is missing"
            raise UserError(f"{where}: the field {name!r} {state}; a passage is {{id, title, section, text}}")
    if not record["text"].strip():
        raise UserError(f"{where}: the field 'text' is empty; remove this passage")
    title = record.get("title", "")
    if record.get("section"):
        title = f"{title}: {record['section']}"
    return {"id": str(record["id"]), "title": title, "text": record["text"]}


def write_passages(path: Path, passages: Iterable[dict[str, str]]) -> None:
    """Write passages as an Arrow file, whole or not at all; in memory are ROWS of them."""
    with (
        whole_path(path) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, SCHEMA) as writer,
    ):
        rows: list[dict[str, str]] = []
        for passage in passages:
            rows.append(passage)
            if len(rows) == ROWS:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))
                rows = []
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, SCHEMA))


def converted(files: Sequence[Path], limit: int) -> Path:
    """The Arrow file of some JSON lines files, in the user's cache: made at the first call, found at the next.

    Raises:
        UserError: a passage is malformed.
    """
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([stats, limit]).encode()).hexdigest()[:16]
    path = cache_folder() / "passages" / f"{key}.arrow"
    if not path.is_file():
        write_passages(path, read_passages(files, limit))
    return path
