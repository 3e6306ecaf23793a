"""The people who made the benchmark as the teacher: a field of each record is its explanation."""

from collections.abc import Iterator
from pathlib import Path

from teacherlm.core.records import Record, read_records
from teacherlm.enhance.engines import Completion, Failure, Prompt


class FieldEngine:
    """Takes explanations that are in the records already.

    Args:
        records: the input file; a prompt's index is the number of its record there.
        field: whose text follows the prompt, after a blank, as a model would write it.
    """

    def __init__(self, records: Path, field: str):
        self.records, self.field = records, field

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """A completion for each prompt; they have to come in the order of their records."""
        numbered: Iterator[tuple[int, tuple[int, Record]]] = enumerate(read_records(self.records))
        index, record = -1, {}
        for prompt in prompts:
            while index < prompt.index:
                index, (_, record) = next(numbered)
            text = record.get(self.field)
            if isinstance(text, str) and text.strip():
                yield Completion(prompt, f" {text.strip()}", 0, 0)
            else:
                yield Failure(prompt, f"the field {self.field!r} has no text")
