"""The log of a training run, log.jsonl, which finetuning and ATLAS write."""

from collections.abc import Iterator
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.records import Record, read_records
from teacherlm.core.shapes import flaw_of_shape

LINE = {"step": int, "skipped_steps?": float}
"""The fields that a resumed run reads. A line has more fields; the report checks them against a shape of its own."""


def read_log(path: Path) -> Iterator[Record]:
    """The lines of a log.

    Raises:
        UserError: the file cannot be read, or a line is not a line of a training log.
    """
    for number, record in read_records(path):
        if flaw := flaw_of_shape(record, LINE):
            raise UserError(f"{path}, line {number}: this is not a line of a training log: {flaw}; fix or remove it")
        yield record
