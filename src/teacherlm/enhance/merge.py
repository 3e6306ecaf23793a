"""Merge the shards of an enhancement: every record once, in the order of the input.

It reads NAME.shard-I-of-N.jsonl for every I, and writes NAME.jsonl and its manifest, exactly as one call without shards
would have written them. Memory does not grow with the number of records.
"""

import contextlib
import filecmp
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from more_itertools import peekable

from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import set_aside
from teacherlm.core.flags import LIST_MISSING, flag, parse
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.records import Record, read_records, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.enhance.job import JUDGED, read_manifest, shard_path


@dataclass(frozen=True)
class MergeFlags:
    """Which shards are merged."""

    input: Path = flag(help="the records that were enhanced")
    output: Path = flag(help="the enhanced file, the same as for enhance.py")
    shards: int = flag(help="number of shards: the N of --shard I/N", least=2)
    list_missing: bool = flag(False, help=LIST_MISSING)


def main() -> None:
    flags = parse(
        MergeFlags, __doc__, example="teacherlm merge --input CREAK.jsonl --output CREAK_cot.jsonl --shards 4"
    )
    require_writable(flags.output.parent)
    require_file_place(flags.output)
    paths = [shard_path(flags.output, (index, flags.shards)) for index in range(flags.shards)]
    # The shards are locked too, so that none of them is rewritten while it is read.
    run = StageRun("enhance", flags.output, locks=[flags.output, *paths], label="merge", read=read_manifest)
    with contextlib.nullcontext() if flags.list_missing else run:
        merge(run, flags, paths)


def merge(run: StageRun, flags: MergeFlags, paths: list[Path]) -> None:
    """Merge the shards at `paths` unless that is done already. With --list_missing, only print whether it is done."""
    parts = [read_part(path) for path in paths]
    run.compare(*agreed(paths, parts, flags))
    failures = sum(part["counts"]["failures"] for part in parts)
    # If a failed record succeeded since the last merge, the numbers of failures differ.
    done = run.is_done and run.counts["failures"] == failures
    if run.ends_here(flags.list_missing, done):
        return
    if not run.is_done:
        run.say_again()
    old = set_aside(flags.output)
    lacking = {path: part["counts"]["failures"] + part["counts"].get("dropped", 0) for path, part in zip(paths, parts)}
    written = write_records(flags.output, merged(flags.input, paths, lacking))
    if old and filecmp.cmp(old, flags.output, shallow=False):  # the same merge was killed before its manifest
        old.unlink()
    elif old:
        print(f"merge: the former {flags.output} is kept as {old}")
    judged = {name: sum(part["counts"][name] for part in parts) for name in JUDGED if name in parts[0]["counts"]}
    ended = sum((count_ended(part["counts"]) for part in parts), Counter())
    counts = {"records": written, "failures": failures, "ended": dict(sorted(ended.items())), **judged}
    counts["shards"] = flags.shards
    run.finish({"enhanced": flags.output}, counts)
    print(f"merge: {flags.output} has {plural(written, 'record')} of {plural(flags.shards, 'shard')}")


def count_ended(counts: dict[str, Any]) -> Counter[str]:
    """How many texts of a shard ended why. Shards of earlier versions do not say it."""
    ended = counts.get("ended")
    if isinstance(ended, dict) and all(type(count) is int for count in ended.values()):
        return Counter(ended)
    return Counter(unknown=counts["records"])


def read_part(path: Path, what: str = "shard") -> dict[str, Any]:
    """The manifest of a shard, or of a teacher's whole file.

    Raises:
        UserError: it is not done, or the file was changed.
    """
    manifest = read_manifest(manifests.manifest_of(path))
    if manifest is None or manifest["stage"] != "enhance" or not path.is_file():
        raise UserError(f"{path}: this {what} is not done; run its enhance.py again")
    if not manifests.still_there(manifest["outputs"]["enhanced"]):
        raise UserError(f"{path}: changed since it was made; remove it and run its enhance.py again")
    return manifest


def agreed(paths: list[Path], parts: list[dict[str, Any]], flags: MergeFlags) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments and inputs that all shards share, in the form of one call without shards.

    Raises:
        UserError: a shard was made with other settings or from other records.
    """
    inputs = {**parts[0]["inputs"], "records": manifests.describe(flags.input, parts[0]["inputs"]["records"])}
    for index, (path, part) in enumerate(zip(paths, parts)):
        expected = {**parts[0]["arguments"], "shard": [index, flags.shards]}
        differing = manifests.differences(part, "enhance", expected, inputs)
        if differing:
            raise UserError(
                f"{path}: made differently from {paths[0]}: {'; '.join(differing)}; run its enhance.py again"
            )
    return {**parts[0]["arguments"], "shard": [0, 1]}, inputs


def merged(path: Path, paths: list[Path], lacking: dict[Path, int]) -> Iterator[Record]:
    """The enhanced records in the order of the input. Each shard may lack as many records as failed or were
    dropped in it.

    Raises:
        UserError: more records are missing, or a record is not in the input.
    """
    readers = [peekable(read_enhanced(part)) for part in paths]
    left = dict(lacking)
    for (line, record), part, reader in zip(read_records(path), itertools.cycle(paths), itertools.cycle(readers)):
        enhanced = reader.peek(None)
        if enhanced is not None and all(enhanced.get(name) == value for name, value in record.items()):
            yield next(reader)
        elif left[part] > 0:
            left[part] -= 1
        else:
            raise UserError(
                f"{path}, line {line}: this record is missing in {part}; remove it and run its enhance.py again"
            )
    for part, reader in zip(paths, readers):
        if reader.peek(None) is not None:
            raise UserError(f"{part}: has records that are not in {path}; remove it and run its enhance.py again")


def read_enhanced(path: Path) -> Iterator[Record]:
    """The records of a shard. The shard is empty if the input has fewer records than there are shards."""
    if path.stat().st_size:
        for _, record in read_records(path):
            yield record
