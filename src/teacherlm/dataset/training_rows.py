"""The rows of the dataset for finetuning: the fields that are made of a sample's explanations (`cot_tail`), and control
fields (`cot_shuffled`), in which a sample has the explanations of another sample with the same right answer.

If a student learns as much from the controls, then it is not the meaning of the explanations that helps but something
else, such as their length or their words (Wadhwa et al. 2024, arXiv 2406.14511).

Every sample's explanations are used once. Which sample's explanations a sample gets is drawn from the seed: within the
samples of a letter, the samples form one random circle, and each takes the explanations of the next one. The answers to
open questions differ from sample to sample, so all open questions form one circle.
"""

import contextlib
import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from teacherlm.catalog.prompt_sets import NUMBERS, PromptSet
from teacherlm.catalog.prompts import ANSWER_MARK, LETTERS, split_answer
from teacherlm.core.errors import UserError
from teacherlm.core.records import Record
from teacherlm.dataset.dataset_folder import Placed, Stream


@contextlib.contextmanager
def training_rows(
    joined: Stream, prompts: PromptSet, kinds: Sequence[str], seed: int, place: Path
) -> Iterator[tuple[Stream, Stream]]:
    """The joined records with their fields for finetuning, and rows of the same types, which take less time to make.

    A sample without another one of its letter has no control field.

    The explanations are kept in a temporary file meanwhile, so that memory takes about 40 bytes per row.

    Args:
        joined: opens the joined records again at each call.
        kinds: the kinds of explanation that the records have.
        place: the folder for the temporary file.
    """
    with tempfile.TemporaryFile(dir=place) as file:
        partners = Partners(joined, kinds, seed, file)
        yield partial(partners.rows, joined, prompts), partial(typed_rows, joined, prompts.made_fields(kinds))


def typed_rows(joined: Stream, made: Sequence[str]) -> Iterator[Placed]:
    """The joined records with empty texts in the fields that are made."""
    texts = dict.fromkeys(made, "")
    for where, record in joined():
        yield where, {**record, **texts}


class Partners:
    """For each row, the row whose explanations it gets.

    Several rows of one sample (a row per text) get the texts of one other sample. If that sample has fewer texts, its
    texts repeat.

    Args:
        file: the file that gets the explanations of all rows.
    """

    def __init__(self, joined: Stream, kinds: Sequence[str], seed: int, file: IO[bytes]):
        self.kinds, self.file = kinds, file
        self.offsets = array("q")  # of each row's explanations in the file
        self.sample_of = array("q")  # for each row, the index of its sample
        starts, letters = array("q"), array("B")  # of each sample: its first row, its letter
        former: object = None
        for row, (_, record) in enumerate(joined()):
            number = record.get(NUMBERS[0], row)
            if row == 0 or number != former:
                starts.append(row)
                letters.append(letter_of(record["text"]))
            former = number
            self.sample_of.append(len(starts) - 1)
            self.offsets.append(file.tell())
            file.write(json.dumps({kind: record[kind] for kind in kinds}).encode() + b"\n")
        file.flush()
        self.starts = np.array([*starts, len(self.offsets)])
        self.partners = circles(np.array(letters), seed)

    def rows(self, joined: Stream, prompts: PromptSet) -> Iterator[Placed]:
        """The rows with the fields that are made of their own explanations and of those of another sample."""
        names = prompts.made_fields(self.kinds)
        for row, (where, record) in enumerate(joined()):
            require_free(record, names, where)
            texts = {kind: record[kind] for kind in self.kinds}
            made = {**record, **prompts.training_texts(record, texts, where)}
            if (others := self.others(row)) is not None:
                made |= prompts.shuffled_texts(made, others, where)
            yield where, made

    def others(self, row: int) -> dict[str, str] | None:
        """The explanations that a row gets from another sample; None if there is no other sample."""
        sample = self.sample_of[row]
        partner = self.partners[sample]
        if partner < 0:
            return None
        first, end = self.starts[partner], self.starts[partner + 1]
        self.file.seek(self.offsets[int(first + (row - self.starts[sample]) % (end - first))])
        found: dict[str, str] = json.loads(self.file.readline())
        return found


def letter_of(text: str) -> int:
    """The letter of a sample's right answer as a number; 0 if it has none, as open questions."""
    _, mark, after = split_answer(text)
    return ord(after[0]) if mark == ANSWER_MARK and after and after[0] in LETTERS else 0


def require_free(record: Record, made: Sequence[str], where: str) -> None:
    """Refuse a record that has a field of a name that is made here.

    Raises:
        UserError: the message names the field.
    """
    for name in made:
        if name in record:
            raise UserError(
                f"{where}: the field {name!r} is already there, and post-processing makes it; rename it first"
            )


def circles(letters: np.ndarray, seed: int) -> np.ndarray:
    """For each sample, the index of another one of the same letter; -1 if there is none.

    Args:
        letters: [N], the letter of each sample as a number.
    """
    partners = np.full(len(letters), -1)
    for letter in np.unique(letters):
        circle = np.random.default_rng([seed, int(letter)]).permutation(np.flatnonzero(letters == letter))
        if len(circle) > 1:
            partners[circle] = np.roll(circle, -1)
    return partners
