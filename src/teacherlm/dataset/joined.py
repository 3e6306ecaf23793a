"""The enhanced files joined to the rows of a dataset: one row per sample, or one per text of the teacher."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from teacherlm.catalog.explanations import FIRST, Explanations, scores_file, texts_of, with_text
from teacherlm.catalog.prompt_sets import NUMBERS
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.records import Record, read_records


def joined_records(enhanced: dict[str, Path], explanations: Explanations = FIRST) -> Iterator[tuple[str, Record]]:
    """(where it comes from, the joined record) for each row. The files have the same samples in the same order.

    The field `all` is that of the first kind, which is cot if it exists.
    """
    for parts in rows_of(enhanced, explanations):
        (first, (number, record)), *_ = parts.items()
        where = f"{enhanced[first]}, line {number}"
        joined = dict(record)
        for kind, (other_number, other) in parts.items():
            there = f"{enhanced[kind]}, line {other_number}"
            for needed in (kind, f"{kind}_text", "all", "text"):
                if not isinstance(other.get(needed), str):
                    raise UserError(
                        f"{there}: the field {needed!r} is missing or is not a text; enhance.py did not write this file"
                    )
            if other["text"] != record["text"]:
                raise UserError(
                    f"{there}: the sample differs from that in {where}; the enhanced files must have the same samples"
                )
            joined[kind] = other[kind]
            of_text = (f"{kind}_{suffix}" for suffix in ("ended", "thinking", "top_logprobs"))
            joined |= {name: other[name] for name in of_text if name in other}
            joined["all"] = record["all"]
        yield where, joined


def rows_of(enhanced: dict[str, Path], explanations: Explanations) -> Iterator[dict[str, tuple[int, Record]]]:
    """For each row of the dataset: kind of explanation -> (line, the enhanced record with the row's text).

    Raises:
        UserError: a file ends before the others.
    """
    readers = {kind: read_records(file) for kind, file in enhanced.items()}
    is_best = explanations.setting == "best"
    scores = {kind: read_records(scores_file(file, explanations.scorer)) for kind, file in enhanced.items() if is_best}
    for number, row in enumerate(itertools.zip_longest(*readers.values()), 1):
        parts = dict(zip(readers, row))
        for kind, part in parts.items():
            if part is None:
                raise UserError(
                    f"{enhanced[kind]}: it ends before the other enhanced files; enhance all its samples first"
                )
        if explanations.setting == "first":
            yield parts
        else:
            said = {kind: next(reader, None) for kind, reader in scores.items()}
            yield from chosen(parts, enhanced, explanations, number, said)


def with_scores(enhanced: dict[str, Path], explanations: Explanations) -> dict[str, Path]:
    """The enhanced files that a dataset is made from: with `best`, those whose texts have scores.

    Raises:
        UserError: no file has scores, or scores belong to other texts.
    """
    if explanations.setting != "best":
        return enhanced
    found = {}
    for kind, file in enhanced.items():
        scores = scores_file(file, explanations.scorer)
        manifest = manifests.read_manifest(manifests.manifest_of(scores)) if scores.is_file() else None
        if manifest is None:
            continue
        scored = manifest["inputs"].get("texts", {})
        if manifests.describe(file, scored)["sha256"] != scored.get("sha256"):
            raise UserError(f"{scores}: the scores are of other texts than {file} has now; make the scores again")
        found[kind] = file
    if not found:
        missing = scores_file(next(iter(enhanced.values())), explanations.scorer)
        raise UserError(f"{missing}: no such file; `teacherlm score-texts` makes it")
    return found


def chosen(
    parts: dict[str, tuple[int, Record]],
    enhanced: dict[str, Path],
    explanations: Explanations,
    number: int,
    scores: Mapping[str, Any],
) -> Iterator[dict[str, tuple[int, Record]]]:
    """The parts of each row that a sample has. Where a kind has fewer texts than another, its texts repeat.

    Args:
        parts: kind of explanation -> (line, the enhanced record).
        number: the sample's number, from 1.
        scores: kind -> the line of its scores, for `best`.
    """
    texts = {kind: texts_of(part, kind, f"{enhanced[kind]}, line {line}") for kind, (line, part) in parts.items()}
    best = {kind: best_text(scores[kind], texts[kind], enhanced[kind], number) for kind in scores}
    for index in range(1 if best else max(map(len, texts.values()))):
        row = {}
        for kind, (line, part) in parts.items():
            record = with_text(part, kind, texts[kind], best.get(kind, index % len(texts[kind])))
            numbers = {} if best else dict(zip(NUMBERS, (number, index + 1)))
            row[kind] = (line, {**record, **numbers})
        yield row


def best_text(said: Any, texts: Sequence[Any], file: Path, number: int) -> int:
    """The index of the text with the highest score; of equal ones, the first.

    Raises:
        UserError: the scores are not those of these texts.
    """
    found = said[1].get("scores") if said else None
    if not isinstance(found, list) or len(found) != len(texts) or not all(type(one) is float for one in found):
        raise UserError(f"{file}, line {number}: the scores of this record have another form; make the scores again")
    return max(range(len(found)), key=found.__getitem__)
