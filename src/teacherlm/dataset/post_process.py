"""Post-processing: the dataset for finetuning students is made from the teacher's texts of one or several kinds."""

import itertools
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.catalog.prompt_sets import PromptSet
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.outputs import require_folder_place
from teacherlm.core.records import Record, read_records
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.dataset.dataset_folder import Stream
from teacherlm.dataset.quality import dropped_samples, kinds_with_ends, measure_quality, quality_file, quality_inputs
from teacherlm.dataset.saved_folder import refuse_theirs, save


def enhanced_files(benchmark: Benchmark, folder: Path, prompts: PromptSet) -> dict[str, Path]:
    """Kind of explanation -> the file with the teacher's texts, if the file exists."""
    files = {kind: folder / f"{benchmark.title}_{kind}.jsonl" for kind in prompts.kinds}
    return {kind: file for kind, file in files.items() if file.exists()}


def post_process(
    benchmark: Benchmark,
    prompts: PromptSet,
    enhanced: dict[str, Path],
    folder: Path,
    test: Path,
    unwanted: Sequence[str],
) -> None:
    """Save the train Dataset with the teacher's texts and the fields for finetuning, such as `cot_tail`.

    Args:
        enhanced: kind of explanation -> the file with the texts.
        test: the folder of the test set. Texts that overlap with it get a flag.
        unwanted: the flags whose samples are dropped.
    """
    stream = partial(with_training_texts, prompts, enhanced)
    kinds = {kind: prompts.kinds[kind] for kind in enhanced}
    measure_quality(quality_run(benchmark, prompts, enhanced, folder, test), benchmark, kinds, stream, test)
    saved = dataset_folder(benchmark, folder, unwanted)
    require_folder_place(saved)
    run = dataset_run(benchmark, prompts, enhanced, saved, unwanted)
    if run.is_done:
        run.say_done()
        return
    if unwanted:
        refuse_theirs(saved)
    run.say_again()
    dropped = dropped_samples(quality_file(folder, benchmark.title), unwanted) if unwanted else {}
    count = save(partial(without, stream, dropped), saved)
    counts: dict[str, Any] = {"train": count}
    if unwanted:
        reasons = Counter(why for reasons in dropped.values() for why in reasons)
        counts |= {"dropped": len(dropped), "dropped_for": dict(sorted(reasons.items())), "dropped_samples": [*dropped]}
    run.finish({"dataset": saved}, counts)
    said = f"; the filter dropped {len(dropped)}" if unwanted else ""
    print(f"post-process: {saved} has {plural(count, 'sample')} with {', '.join(kinds)}{said}")


def is_post_processed(
    benchmark: Benchmark,
    prompts: PromptSet,
    enhanced: dict[str, Path],
    folder: Path,
    test: Path,
    unwanted: Sequence[str],
) -> bool:
    """Whether `post_process` would do nothing."""
    if not quality_run(benchmark, prompts, enhanced, folder, test).is_done:
        return False
    return dataset_run(benchmark, prompts, enhanced, dataset_folder(benchmark, folder, unwanted), unwanted).is_done


def quality_run(
    benchmark: Benchmark, prompts: PromptSet, enhanced: dict[str, Path], folder: Path, test: Path
) -> StageRun:
    """The run of TITLE_quality.jsonl, compared with its work."""
    run = StageRun("quality", quality_file(folder, benchmark.title))
    ended = kinds_with_ends(enhanced)
    run.compare(
        {"ended": ended} if ended else {},
        quality_inputs(benchmark, prompts, enhanced_inputs(enhanced, run.known), test, run.known),
    )
    return run


def dataset_run(
    benchmark: Benchmark, prompts: PromptSet, enhanced: dict[str, Path], saved: Path, unwanted: Sequence[str]
) -> StageRun:
    """The run of a dataset for finetuning, compared with its work: the enhanced files, the prompts, and the flags if
    samples are dropped."""
    run = StageRun("post_process", saved, label="post-process")
    inputs = {**enhanced_inputs(enhanced, run.known), "prompts": prompts.digest()}
    quality = quality_file(saved.parent, benchmark.title)
    if unwanted and quality.is_file():
        inputs["quality"] = manifests.describe(quality, run.known.get("quality"))
    run.compare({"filter": list(unwanted)} if unwanted else {}, inputs)
    return run


def dataset_folder(benchmark: Benchmark, folder: Path, unwanted: Sequence[str]) -> Path:
    return folder / "-".join([benchmark.title + "_without" if unwanted else benchmark.title, *unwanted])


def without(stream: Stream, dropped: Container[int]) -> Iterator[tuple[str, Record]]:
    """The records without those whose numbers, counted from 1, are dropped.

    Raises:
        UserError: no record is left.
    """
    left = 0
    for number, placed in enumerate(stream(), 1):
        if number not in dropped:
            left += 1
            yield placed
    if not left:
        raise UserError("--filter: every sample has one of these flags, so none is left; give fewer flags")


def enhanced_inputs(
    enhanced: dict[str, Path], known: Mapping[str, manifests.Description]
) -> dict[str, manifests.Description]:
    return {kind: manifests.describe(file, known.get(kind)) for kind, file in enhanced.items()}


def with_training_texts(prompts: PromptSet, enhanced: dict[str, Path]) -> Iterator[tuple[str, Record]]:
    """The joined records of the enhanced files, which have the same samples in the same order.

    The field `all` is that of the first kind, which is cot if it exists.
    """
    readers = {kind: read_records(file) for kind, file in enhanced.items()}
    for row in itertools.zip_longest(*readers.values()):
        parts = dict(zip(readers, row))
        for kind, part in parts.items():
            if part is None:
                raise UserError(
                    f"{enhanced[kind]}: it ends before the other enhanced files; enhance all its samples first"
                )
        (first, (number, record)), *_ = parts.items()
        where = f"{enhanced[first]}, line {number}"
        joined = dict(record)
        texts = {}
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
            texts[kind] = joined[kind] = other[kind]
            joined |= {name: other[name] for name in (f"{kind}_ended", f"{kind}_thinking") if name in other}
            joined["all"] = record["all"]
        yield where, {**joined, **prompts.training_texts(joined, texts, where)}
