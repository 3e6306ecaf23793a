"""Passages: JSON lines {id, title, section, text}, kept as a memory-mapped Arrow file: no text fills memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from teacherlm.atlas import contents
from teacherlm.core.errors import UserError, reason
from teacherlm.core.files import whole_file, whole_path
from teacherlm.core.json_files import load_json
from teacherlm.core.lock import one_writer
from teacherlm.core.places import cache_folder
from teacherlm.core.records import Record, read_records
from teacherlm.core.terminal import shown

FIELDS = ("id", "title", "text")
SCHEMA = pa.schema([(name, pa.large_string()) for name in FIELDS])
ROWS = 16_384
"""Rows of a record batch, all but the last: a row is found by a division."""


class Passages:
    """The passages of an Arrow file, by their row.

    The file is memory-mapped, and numbers in it say where its texts begin: wrong ones would end the process. So whoever
    has a digest of the file compares it first, and each batch is validated before its first row is read.

    Raises:
        UserError: the file is damaged, or none of passages; found at the latest when a damaged batch is read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if self.reader.schema != SCHEMA:
                raise UserError(f"{path}: columns {', '.join(FIELDS)} were expected; this is no file of passages")
            self.batches = [self.reader.get_batch(number) for number in range(self.reader.num_record_batches)]
        except (OSError, pa.ArrowException) as error:
            raise self.damaged(error) from error
        sizes = [batch.num_rows for batch in self.batches]
        if sizes and (set(sizes[:-1]) - {ROWS} or not 0 < sizes[-1] <= ROWS):
            raise self.damaged(f"each batch but the last was expected to have {ROWS} rows")
        self.count = sum(sizes)
        self.validated: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, str]:
        number, place = divmod(row, ROWS)
        if number not in self.validated:
            self.validate(number)
        batch = self.batches[number]
        return {name: batch.column(name)[place].as_py() for name in FIELDS}

    def validate(self, number: int) -> None:
        """Check a batch: its buffers are in the file, its offsets in order, its texts UTF-8, and none is null."""
        batch = self.batches[number]
        try:
            batch.validate(full=True)
        except pa.ArrowException as error:
            raise self.damaged(error) from error
        if any(column.null_count for column in batch.columns):
            raise self.damaged("a field of a passage is null")
        self.validated.add(number)

    def damaged(self, why: object) -> UserError:
        why = reason(why) if isinstance(why, Exception) else why
        return UserError(f"{self.path}: no whole Arrow file of passages ({why}); make or copy it again")

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
            where = f"{file}, line {number}"
            passage = passage_of(record, where)
            if not passage["text"].strip():
                raise UserError(f"{where}: the field 'text' is empty; remove this passage")
            yield passage


def passage_of(record: Record, where: str) -> dict[str, str]:
    """A passage of the fields id, title and text."""
    if not isinstance(record.get("id"), str | int):
        raise UserError(f"{where}: the field 'id' is missing; a passage is {{id, title, section, text}}")
    for name in ("text", "title", "section"):
        value = record.get(name, "" if name != "text" else None)
        if not isinstance(value, str):
            state = f"must be a text, found {shown(value)}" if name in record else "is missing"
            raise UserError(f"{where}: the field {name!r} {state}; a passage is {{id, title, section, text}}")
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
    """The Arrow file of the first `limit` passages (-1: all) of some JSON lines files, named by their contents.

    Raises:
        UserError: a passage is malformed.
    """
    described = {file: contents.describe(file) for file in files}
    key = json.dumps([[found["sha256"] for found in map(described.get, files)], limit])
    passages = read_passages(files, limit)
    for file, found in described.items():
        passages = contents.while_unchanged(file, None, found, passages)
    return converted_once(hashlib.sha256(key.encode()).hexdigest()[:32], passages)


def converted_once(key: str, passages: Iterable[dict[str, str]]) -> Path:
    """The Arrow file `key` in the user's cache: the first process that asks for it makes it, others wait meanwhile.

    Its digest lies beside it. A file that is not the one that was written is made again.

    Args:
        key: a digest of what the passages are read from.
        passages: read only where the file is not there.
    """
    path = cache_folder() / "passages" / f"{key}.arrow"
    if not is_as_written(path):
        with one_writer(path):
            if not is_as_written(path):
                write_passages(path, passages)
                with whole_file(path.with_suffix(".json")) as file:
                    json.dump({"sha256": contents.describe(path)["sha256"]}, file)
    return path


def is_as_written(path: Path) -> bool:
    """Whether an Arrow file of the cache is there and has the digest that was noted when it was written."""
    try:
        noted = load_json(path.with_suffix(".json"))
        return path.is_file() and contents.describe(path)["sha256"] == noted["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
