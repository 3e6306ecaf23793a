"""Read predictions in the format of evaluate.py and of the reference, with one line per question."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from teacherlm.core.errors import UserError
from teacherlm.core.records import Record, read_records
from teacherlm.core.shapes import LONG_TEXT, flaw_of_shape

ORIGINAL = {
    "choice_logits": {str: float},
    "metadata": {"dataset": str, "question": LONG_TEXT, "options": ({str: LONG_TEXT}, [LONG_TEXT], LONG_TEXT)},
}
"""The fields that are read from the permutation with the original order of the options."""
SPLIT_ENDINGS = ("_test", "_valid", "_val", "_dev")


class Prediction(NamedTuple):
    """The prediction for a question.

    Attributes:
        domain: the question's domain.
        question: its text.
        options: its options as one text.
        record: the question with all its fields.
        choice: the choice with the options in their original order.
        debiased: the choice averaged over the orders of the options.
    """

    domain: str
    question: str
    options: str
    record: Record
    choice: str
    debiased: str


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The predictions in a file.

    Raises:
        UserError: a line is not a prediction; the message names file and line.
    """
    for number, record in read_records(path):
        where = f"{path}, line {number}"
        permutations = record.get("permutations", record.get("permuatations"))  # the reference's older spelling
        permutations = permutations if isinstance(permutations, list) else []
        original = next(
            (one for one in permutations if isinstance(one, dict) and is_original(one.get("metadata"))), None
        )
        if original is None:
            raise UserError(f"{where}: not a prediction of evaluate.py: it has no permutation with the original order")
        require_fields(original, ("choice_logits",), where)
        flaw = flaw_of_shape(record, {"generation": LONG_TEXT}) or flaw_of_shape(original, ORIGINAL)
        if flaw or not original["choice_logits"]:
            raise UserError(f"{where}: not a prediction of evaluate.py: {flaw or 'choice_logits is empty'}")
        logits, question = original["choice_logits"], original["metadata"]
        choice = max(logits, key=lambda letter: logits[letter])
        names = domain_of(question["dataset"]), question["question"], str(question["options"])
        yield Prediction(*names, question, choice, record["generation"])


def is_original(metadata: object) -> bool:
    return isinstance(metadata, dict) and bool(metadata.get("is_original"))


def domain_of(dataset: str) -> str:
    """The domain of a dataset's name: `anatomy_test` -> `anatomy`."""
    ending = next((ending for ending in SPLIT_ENDINGS if dataset.endswith(ending)), "")
    return dataset.removesuffix(ending)


def require_fields(record: Record, names: tuple[str, ...], where: str) -> None:
    missing = next((name for name in names if name not in record), None)
    if missing:
        raise UserError(f"{where}: the field {missing!r} is missing")
