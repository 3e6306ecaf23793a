"""The log of a training, log.jsonl, as finetuning and ATLAS write it and as it is read again."""

from collections.abc import Iterator
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.records import Record, read_records
from teacherlm.core.shapes import flaw_of_shape

LINE = {"step": int, "skipped_steps?": float}
"""What a training that goes on reads of a line. It has other fields as well; the report holds them to its own shape."""


def read_log(path: Path) -> Iterator[Record]:
    """The lines of a log that say what was done up to a step.

    Raises:
        UserError: the file cannot be read, or a line is none of a training's log.
    """
    for number, record in read_records(path):
        if flaw := flaw_of_shape(record, LINE):
            raise UserError(f"{path}, line {number}: no line of a training's log: {flaw}; mend or remove it")
        yield record
