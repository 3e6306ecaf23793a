"""Post-processing: the teacher's texts, of one kind or several, become what a student is finetuned on."""

import itertools
import time
from collections import Counter
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.catalog.prompts import KINDS, full_tail, prompts_digest, remove_duplicated_block
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.outputs import require_folder_place
from teacherlm.core.records import Record, read_records
from teacherlm.dataset.dataset_folder import Stream
from teacherlm.dataset.quality import dropped_samples, measure_quality, quality_file, quality_inputs
from teacherlm.dataset.saved_folder import finish, refuse_theirs, save


def enhanced_files(benchmark: Benchmark, folder: Path) -> dict[str, Path]:
    """Prompt field -> the file that holds the teacher's texts for it, for those that are there."""
    files = {field: folder / f"{benchmark.title}_{kind}.jsonl" for field, kind in KINDS.items()}
    return {field: file for field, file in files.items() if file.exists()}


def post_process(
    benchmark: Benchmark, enhanced: dict[str, Path], folder: Path, test: Path, unwanted: list[str]
) -> None:
    """Save the train Dataset with the teacher's texts and what a student is finetuned on: the `*_tail` fields.

    Args:
        test: folder of the test set, which the texts must not overlap.
        unwanted: flags whose samples are dropped.
    """
    quality = manifests.read_manifest(manifests.manifest_of(quality_file(folder, benchmark.title)))
    stream = partial(with_tails, enhanced)
    kinds = [KINDS[field] for field in enhanced]
    measure_quality(benchmark, folder, kinds, stream, enhanced_inputs(enhanced, quality), test)
    started = time.time()
    saved = dataset_folder(benchmark, folder, unwanted)
    require_folder_place(saved)
    manifest = manifests.read_manifest(manifests.manifest_of(saved))
    inputs = post_process_inputs(benchmark, enhanced, folder, unwanted, manifest)
    changes = manifests.changes(manifest, "post_process", filter_argument(unwanted), inputs)
    if not changes:
        print(f"post-process: done already, nothing to do ({manifests.manifest_of(saved)} matches its inputs)")
        return
    if unwanted:
        refuse_theirs(saved)
    manifests.say_again("post_process", manifest, changes)
    dropped = dropped_samples(quality_file(folder, benchmark.title), unwanted) if unwanted else {}
    count = save(partial(without, stream, dropped), saved)
    counts: dict[str, Any] = {"train": count}
    if unwanted:
        reasons = Counter(why for reasons in dropped.values() for why in reasons)
        counts |= {"dropped": len(dropped), "dropped_for": dict(sorted(reasons.items())), "dropped_samples": [*dropped]}
    finish(saved, "post_process", inputs, counts, started, filter_argument(unwanted))
    said = f", {len(dropped)} were dropped" if unwanted else ""
    print(f"post-process: {saved} has {count} samples with {', '.join(kinds)}{said}")


def is_post_processed(
    benchmark: Benchmark, enhanced: dict[str, Path], folder: Path, test: Path, unwanted: list[str]
) -> bool:
    """Whether `post_process` would do nothing."""
    quality = manifests.read_manifest(manifests.manifest_of(quality_file(folder, benchmark.title)))
    tested = quality_inputs(benchmark, enhanced_inputs(enhanced, quality), test, quality)
    if manifests.changes(quality, "quality", {}, tested):
        return False
    manifest = manifests.read_manifest(manifests.manifest_of(dataset_folder(benchmark, folder, unwanted)))
    inputs = post_process_inputs(benchmark, enhanced, folder, unwanted, manifest)
    return not manifests.changes(manifest, "post_process", filter_argument(unwanted), inputs)


def dataset_folder(benchmark: Benchmark, folder: Path, unwanted: list[str]) -> Path:
    return folder / "-".join([benchmark.title + "_without" if unwanted else benchmark.title, *unwanted])


def filter_argument(unwanted: list[str]) -> dict[str, Any]:
    return {"filter": unwanted} if unwanted else {}


def without(stream: Stream, dropped: Container[int]) -> Iterator[tuple[str, Record]]:
    """The records but for those of some numbers, from 1.

    Raises:
        UserError: none is left.
    """
    left = 0
    for number, placed in enumerate(stream(), 1):
        if number not in dropped:
            left += 1
            yield placed
    if not left:
        raise UserError("--filter: every sample has one of these flags, none is left; name fewer of them")


def enhanced_inputs(enhanced: dict[str, Path], manifest: dict[str, Any] | None) -> dict[str, Any]:
    known = (manifest or {}).get("inputs", {})
    return {KINDS[field]: manifests.describe(file, known.get(KINDS[field])) for field, file in enhanced.items()}


def post_process_inputs(
    benchmark: Benchmark, enhanced: dict[str, Path], folder: Path, unwanted: list[str], manifest: dict[str, Any] | None
) -> dict[str, Any]:
    """The enhanced files, the prompts, and, where samples are dropped, what their flags say."""
    inputs = {**enhanced_inputs(enhanced, manifest), "prompts": prompts_digest()}
    quality = quality_file(folder, benchmark.title)
    if unwanted and quality.is_file():
        inputs["quality"] = manifests.describe(quality, (manifest or {}).get("inputs", {}).get("quality"))
    return inputs


def with_tails(enhanced: dict[str, Path]) -> Iterator[tuple[str, Record]]:
    """The records of the enhanced files, which hold the same samples in the same order, joined into one each.

    `all` is the first kind's (cot, where it is there).
    """
    readers = {field: read_records(file) for field, file in enhanced.items()}
    for row in itertools.zip_longest(*readers.values()):
        parts = dict(zip(readers, row))
        for field, part in parts.items():
            if part is None:
                raise UserError(
                    f"{enhanced[field]}: ends before the other enhanced files; enhance all of its samples first"
                )
        (first, (number, record)), *_ = parts.items()
        where = f"{enhanced[first]}, line {number}"
        joined = dict(record)
        texts = {}
        for field, (other_number, other) in parts.items():
            kind = KINDS[field]
            there = f"{enhanced[field]}, line {other_number}"
            for needed in (kind, "all", "text"):
                if not isinstance(other.get(needed), str):
                    raise UserError(
                        f"{there}: the field {needed!r} is missing or no text; this is no file of enhance.py"
                    )
            if other["text"] != record["text"]:
                raise UserError(
                    f"{there}: another sample than in {where}; the enhanced files must hold the same samples"
                )
            texts[field] = joined[kind] = other[kind]
            joined["all"] = record["all"]
        for field, part in parts.items():
            joined[f"{KINDS[field]}_tail"] = remove_duplicated_block(part[1]["all"])
        if len(texts) == len(KINDS):
            joined["full_tail"] = full_tail(joined["text"], texts)
        yield where, joined
