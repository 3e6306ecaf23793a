"""Test sets, which data_prepare.py makes: folders of samples with the fields `question` and `answer`."""

import functools
from pathlib import Path

import datasets

from teacherlm.catalog.prompts import LETTERS
from teacherlm.core.errors import UserError, reason
from teacherlm.core.json_files import load_object
from teacherlm.core.saved_datasets import load_saved
from teacherlm.core.terminal import shown


def load_test_set(path: Path, name: str, choices: int | None) -> datasets.Dataset:
    """The samples of a benchmark's test set.

    Args:
        name: the benchmark's name, for the message that its test set is missing.
        choices: the number of choices, whose letters an answer may be. None means that an answer may be any text.

    Raises:
        UserError: there are no samples, or one has no `question` or `answer`, or an answer is not one of the letters.
    """
    if not (path / "dataset_info.json").is_file():
        raise UserError(
            f"{path}: the test set of {name} is missing; make it with: "
            f"python3 enhance/data_prepare.py --benchmark {name} (or give its folder with --datasets)"
        )
    return read(path, tuple((file.name, file.stat().st_mtime_ns) for file in sorted(path.glob("*"))), choices)


@functools.lru_cache(maxsize=4)  # MMLU's 57 tasks read one set
def read(path: Path, stamp: tuple[tuple[str, int], ...], choices: int | None) -> datasets.Dataset:
    try:
        features = load_object(path / "dataset_info.json").get("features") or {}
        samples = load_saved(path)
    except Exception as error:  # a UserError about the folder, or an error about dataset_info.json
        raise UserError(f"{path}: there are no samples in it, or they cannot be read ({reason(error)})") from error
    for needed in ("question", "answer"):
        if needed not in features:
            raise UserError(f"{path}: its samples have no field {needed!r}; they have: {', '.join(features)}")
    answers = list(samples["answer"])
    if not answers:
        raise UserError(f"{path}: there are no samples in it")
    for number, question in enumerate(samples["question"]):
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{path}, sample {number}: the question is {shown(question)}; a text was expected")
    accepted = {f"({letter})" for letter in LETTERS[: choices or 0]}
    for number, answer in enumerate(answers):
        if choices is not None and answer not in accepted:
            expected = f"(A) to ({LETTERS[choices - 1]})"
            raise UserError(f"{path}, sample {number}: the answer is {shown(answer)}; one of {expected} was expected")
    return samples
