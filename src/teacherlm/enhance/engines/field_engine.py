"""An engine without a model: the explanations are in a field of the records, written by the benchmark's authors."""

from collections.abc import Iterator
from pathlib import Path

from teacherlm.core.records import Record, read_records
from teacherlm.runtime.generation import Completion, Failure, Prompt


class FieldEngine:
    """Takes explanations from a field of the records.

    Args:
        records: the input file. The index of a prompt is the index of its record in this file.
        field: the field with the explanation. A space and its text follow the prompt, as if a model had written them.
    """

    def __init__(self, records: Path, field: str):
        self.records, self.field = records, field

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """Yield a completion for each prompt. The prompts must come in the order of their records."""
        numbered: Iterator[tuple[int, tuple[int, Record]]] = enumerate(read_records(self.records))
        index, record = -1, {}
        for prompt in prompts:
            while index < prompt.index:
                index, (_, record) = next(numbered)
            text = record.get(self.field)
            if isinstance(text, str) and text.strip():
                yield Completion(prompt, f" {text.strip()}", 0, 0, "stop")
            else:
                yield Failure(prompt, f"the field {self.field!r} has no text")
