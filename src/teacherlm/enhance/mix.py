"""Mix the texts of several teachers for the same samples: a sample then has several explanations.

It reads enhanced files of one kind, one per teacher, and writes an enhanced file whose records have all texts in the
list `KIND_completions`. Each text says its teacher. `--explanations` of data_prepare.py chooses among them, as among
several texts of one teacher. A sample that only some teachers explained has their texts.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from more_itertools import peekable

from teacherlm.catalog.explanations import OF_A_TEXT, texts_of
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.flags import LIST_MISSING, flag, parse
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.records import Record, read_records, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.enhance.merge import count_ended, read_enhanced, read_part


@dataclass(frozen=True)
class MixFlags:
    """Which texts are mixed."""

    kind: str = flag(help="the kind of explanation (cot), a field of the records")
    input: Path = flag(help="the records that were enhanced")
    enhanced: tuple[Path, ...] = flag(help="the enhanced files, one per teacher")
    output: Path = flag(help="the file for the records with the texts of all teachers")
    list_missing: bool = flag(False, help=LIST_MISSING)


def main() -> None:
    flags = parse(
        MixFlags,
        __doc__,
        example="teacherlm mix --kind cot --input CREAK.jsonl --enhanced a/CREAK_cot.jsonl b/CREAK_cot.jsonl "
        "--output CREAK_cot.jsonl",
    )
    paths = list(dict.fromkeys(flags.enhanced))
    if len(paths) < 2:
        raise UserError("--enhanced: at least two files were expected, one per teacher")
    if any(flags.output.resolve() == path.resolve() for path in (flags.input, *paths)):
        raise UserError(f"--output: {flags.output} is read too; give another file")
    if not flags.input.is_file():
        raise UserError(f"{flags.input}: no such file; data_prepare.py writes it")
    require_writable(flags.output.parent)
    require_file_place(flags.output)
    run = StageRun("mix", flags.output)
    with contextlib.nullcontext() if flags.list_missing else run:
        mix(run, flags, paths)


def mix(run: StageRun, flags: MixFlags, paths: list[Path]) -> None:
    """Mix the texts unless that is done already. With --list_missing, only print whether it is done.

    Raises:
        UserError: a file is not done, or has texts of another kind, or was made from other records.
    """
    parts = [read_part(path, "file") for path in paths]
    records = manifests.describe(flags.input, run.known.get("records") or parts[0]["inputs"]["records"])
    for path, part in zip(paths, parts):
        if (found := part["arguments"].get("task_type")) != f"{flags.kind}_text":
            raise UserError(f"{path}: texts of {flags.kind}_text were expected, found those of {found}")
        if part["inputs"]["records"].get("sha256") != records["sha256"]:
            raise UserError(f"{path}: made from other records than {flags.input}; run its enhance.py again")
    inputs = {f"texts {number}": part["outputs"]["enhanced"] for number, part in enumerate(parts, 1)}
    inputs["records"] = records
    run.compare({"task_type": f"{flags.kind}_text"}, inputs)
    if run.ends_here(flags.list_missing):
        return
    run.say_again()
    counts: Counter[str] = Counter()
    teachers = [teacher_of(part) for part in parts]
    written = write_records(flags.output, mixed(flags, paths, teachers, counts))
    ended = sum((count_ended(part["counts"]) for part in parts), Counter())
    whole = {"records": written, "texts": counts["texts"], "ended": dict(sorted(ended.items()))}
    run.finish({"enhanced": flags.output}, {**whole, "failures": 0, "teachers": teachers})
    print(f"mix: {flags.output} has {plural(written, 'record')} with {plural(counts['texts'], 'text')}")


def teacher_of(part: dict[str, Any]) -> str:
    """A teacher's name: that of its folder, of its server's model, or of the field that its texts come from."""
    return str(part["inputs"]["teacher"]["path"]).rstrip("/").rpartition("/")[2]


def mixed(flags: MixFlags, paths: list[Path], teachers: list[str], counts: Counter[str]) -> Iterator[Record]:
    """The records with the texts of all teachers, in the order of the input.

    Args:
        counts: gets the number of `texts`.

    Raises:
        UserError: a file has a record that is not in the input.
    """
    readers = [peekable(zip(itertools.count(1), read_enhanced(path))) for path in paths]
    for _, record in read_records(flags.input):
        first: Record = {}
        texts: list[dict[str, Any]] = []
        for path, teacher, reader in zip(paths, teachers, readers):
            line, enhanced = reader.peek((0, None))
            if enhanced is None or any(enhanced.get(name) != value for name, value in record.items()):
                continue
            next(reader)
            first = first or enhanced
            found = with_ends(enhanced, flags.kind, texts_of(enhanced, flags.kind, f"{path}, line {line}"))
            texts += [{**text, "teacher": teacher} for text in found]
        if first:
            counts["texts"] += len(texts)
            yield {**first, f"{flags.kind}_completions": texts}
    for path, reader in zip(paths, readers):
        if (line := reader.peek((0, None))[0]) > 0:
            raise UserError(
                f"{path}, line {line}: this record is not in {flags.input}, or in another place; mix texts of the same "
                "records"
            )


def with_ends(record: Record, kind: str, texts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The texts of a record. A single text, which has no list, gets what fields of the record say of it."""
    if f"{kind}_completions" in record:
        return texts
    said = {name: record[f"{kind}_{name}"] for name in OF_A_TEXT if f"{kind}_{name}" in record}
    return [{"ended": "stop", **said, **text} for text in texts]
