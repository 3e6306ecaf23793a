"""Passages: they are read from JSON lines {id, title, section, text} and kept in a memory-mapped Arrow file, so that
their texts do not fill the memory."""

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
"""Number of rows in each record batch except the last, so that a division finds the batch of a row."""


class Passages:
    """The passages in an Arrow file, by row.

    The file is memory-mapped and contains offsets of its texts. Wrong offsets would crash the process. So a caller that
    has a digest of the file checks it first, and each batch is validated before its first row is read.

    Raises:
        UserError: the file is damaged or does not hold passages. A damaged batch is found when it is first read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.reader = pa.ipc.open_file(pa.memory_map(str(path)))
            if self.reader.schema != SCHEMA:
                raise UserError(f"{path}: columns {', '.join(FIELDS)} were expected; this is not a file of passages")
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
        """Check that a batch's buffers are in the file, its offsets in order, and its texts UTF-8 and not null."""
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
        return UserError(f"{self.path}: not a complete Arrow file of passages ({why}); make or copy it again")

    def between(self, start: int, end: int) -> Iterator[dict[str, str]]:
        """The passages from row `start` to before `end`."""
        return (self[row] for row in range(start, end))


def read_passages(files: Sequence[Path], limit: int) -> Iterator[dict[str, str]]:
    """The passages of several files, one after the other. As in the reference, a section is appended to the title.

    Args:
        files: files of JSON lines.
        limit: maximum number of passages; -1 means all.

    Raises:
        UserError: a passage has no id or text; the message names file and line.
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
    """A passage with the fields id, title and text."""
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
    """Write passages to an Arrow file, completely or not at all. Memory holds at most ROWS of them."""
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
    """The Arrow file with the first `limit` passages (-1 means all) of JSON lines files. Its name is a digest of them.

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
    """The Arrow file `key` in the user's cache. The first process that needs it makes it, and the others wait.

    Its digest is in a second file. If the Arrow file no longer has this digest, it is made again.

    Args:
        key: a digest of the files from which the passages are read.
        passages: the passages, which are read only if the file has to be made.
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
    """Whether an Arrow file of the cache exists and has the digest that was recorded when it was written."""
    try:
        noted = load_json(path.with_suffix(".json"))
        return path.is_file() and contents.describe(path)["sha256"] == noted["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
