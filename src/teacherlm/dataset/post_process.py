"""Post-processing: the dataset for finetuning students is made from the teacher's texts of one or several kinds."""

import itertools
import operator
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.catalog.explanations import FIRST, Explanations, scores_file
from teacherlm.catalog.prompt_sets import PromptSet
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.outputs import require_folder_place
from teacherlm.core.records import Record, read_records, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.dataset.dataset_folder import Stream
from teacherlm.dataset.joined import with_scores, with_training_texts
from teacherlm.dataset.quality import (
    dropped_samples,
    kinds_with_ends,
    measure_quality,
    quality_file,
    quality_inputs,
    reasons_to_drop,
)
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
    explanations: Explanations = FIRST,
) -> None:
    """Save the train Dataset with the teacher's texts and the fields for finetuning, such as `cot_tail`.

    Args:
        enhanced: kind of explanation -> the file with the texts.
        test: the folder of the test set. Texts that overlap with it get a flag.
        unwanted: the flags whose samples are dropped; with a row per text, the flags whose texts are dropped.
        explanations: which of a sample's texts the dataset has.
    """
    kinds = {kind: prompts.kinds[kind] for kind in enhanced}
    first = partial(with_training_texts, prompts, enhanced)
    measure_quality(quality_run(benchmark, prompts, enhanced, folder, test), benchmark, kinds, first, test)
    saved = dataset_folder(benchmark, folder, unwanted, explanations)
    require_folder_place(saved)
    stream, quality = first, quality_file(folder, benchmark.title)
    if explanations.setting != "first":
        enhanced = with_scores(enhanced, explanations)
        kinds = {kind: prompts.kinds[kind] for kind in enhanced}
        stream = partial(with_training_texts, prompts, enhanced, explanations)
        measured = quality_run(benchmark, prompts, enhanced, folder, test, explanations)
        measure_quality(measured, benchmark, kinds, stream, test)
        quality = measured.output
    run = dataset_run(benchmark, prompts, enhanced, saved, unwanted, explanations)
    if run.is_done:
        run.say_done()
        return
    if saved.name != benchmark.title:
        refuse_theirs(saved)
    run.say_again()
    outputs, counts = {"dataset": saved}, {}
    if not unwanted:
        count = save(stream, saved)
    elif explanations.has_every_text:
        outputs["dropped"] = dropped_list(saved)
        counts = list_dropped(quality, unwanted, outputs["dropped"])
        count = save(partial(without_flagged, stream, quality, unwanted), saved)
    else:
        dropped = dropped_samples(quality, unwanted)
        count = save(partial(without, stream, dropped), saved)
        reasons = Counter(why for reasons in dropped.values() for why in reasons)
        counts = {"dropped": len(dropped), "dropped_for": dict(sorted(reasons.items())), "dropped_samples": [*dropped]}
    run.finish(outputs, {"train": count, **counts})
    said = f"; the filter dropped {counts['dropped']}" if unwanted else ""
    what = "text" if explanations.has_every_text else "sample"
    print(f"post-process: {saved} has {plural(count, what)} with {', '.join(kinds)}{said}")


def is_post_processed(
    benchmark: Benchmark,
    prompts: PromptSet,
    enhanced: dict[str, Path],
    folder: Path,
    test: Path,
    unwanted: Sequence[str],
    explanations: Explanations = FIRST,
) -> bool:
    """Whether `post_process` would do nothing."""
    if not quality_run(benchmark, prompts, enhanced, folder, test).is_done:
        return False
    if explanations.setting != "first":
        try:
            enhanced = with_scores(enhanced, explanations)
        except UserError:  # there are no scores yet; `post_process` says so
            return False
        if not quality_run(benchmark, prompts, enhanced, folder, test, explanations).is_done:
            return False
    saved = dataset_folder(benchmark, folder, unwanted, explanations)
    return dataset_run(benchmark, prompts, enhanced, saved, unwanted, explanations).is_done


def quality_run(
    benchmark: Benchmark,
    prompts: PromptSet,
    enhanced: dict[str, Path],
    folder: Path,
    test: Path,
    explanations: Explanations = FIRST,
) -> StageRun:
    """The run of TITLE_quality.jsonl, or of the same file for other texts than the first ones, compared with its work.

    `all` and `each_epoch` have the same texts, so they share a file.
    """
    label = "_texts" if explanations.has_every_text else explanations.label
    run = StageRun("quality", quality_file(folder, f"{benchmark.title}{label}"))
    described = enhanced_inputs(enhanced, run.known, explanations)
    texts = "all" if explanations.has_every_text else explanations.label.removeprefix("_")
    ended = kinds_with_ends(enhanced)
    arguments = ({"texts": texts} if texts else {}) | ({"ended": ended} if ended else {})
    run.compare(arguments, quality_inputs(benchmark, prompts, described, test, run.known))
    return run


def dataset_run(
    benchmark: Benchmark,
    prompts: PromptSet,
    enhanced: dict[str, Path],
    saved: Path,
    unwanted: Sequence[str],
    explanations: Explanations = FIRST,
) -> StageRun:
    """The run of a dataset for finetuning, compared with its work: the enhanced files, the prompts, the flags if
    samples are dropped, and the scores if they choose the texts."""
    run = StageRun("post_process", saved, label="post-process")
    inputs = {**enhanced_inputs(enhanced, run.known, explanations), "prompts": prompts.digest()}
    label = "_texts" if explanations.has_every_text else explanations.label
    quality = quality_file(saved.parent, f"{benchmark.title}{label}")
    if unwanted and quality.is_file():
        inputs["quality"] = manifests.describe(quality, run.known.get("quality"))
    arguments: dict[str, Any] = {"filter": list(unwanted)} if unwanted else {}
    arguments |= {} if explanations.setting == "first" else {"explanations": explanations.setting}
    run.compare(arguments, inputs)
    return run


def dataset_folder(
    benchmark: Benchmark, folder: Path, unwanted: Sequence[str], explanations: Explanations = FIRST
) -> Path:
    name = f"{benchmark.title}{explanations.label}"
    return folder / "-".join([f"{name}_without" if unwanted else name, *unwanted])


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


def dropped_list(saved: Path) -> Path:
    """The file that lists the texts which a filter dropped from a dataset."""
    return saved.with_name(f"{saved.name}.dropped.jsonl")


def list_dropped(quality: Path, unwanted: Sequence[str], listed: Path) -> dict[str, Any]:
    """Write the list of the texts that have one of the flags, with the reasons; return the counts for the manifest.

    A sample of which every text is dropped has no row in the dataset. It is counted in `samples_without_text`.
    """
    reasons: Counter[str] = Counter()
    kept: Counter[str] = Counter()

    def rows() -> Iterator[Record]:
        for _, of_sample in itertools.groupby(
            (said for _, said in read_records(quality)), key=operator.itemgetter("sample")
        ):
            left = False
            for said in of_sample:
                why = reasons_to_drop(said, unwanted)
                reasons.update(why)
                left = left or not why
                if why:
                    yield {"sample": said["sample"], "text": said["text"], "reasons": why}
            kept["samples_without_text"] += not left

    dropped = write_records(listed, rows())
    return {"dropped": dropped, "dropped_for": dict(sorted(reasons.items())), **kept}


def without_flagged(stream: Stream, quality: Path, unwanted: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """The rows whose line of the quality file has none of the flags.

    Raises:
        UserError: no row is left.
    """
    left = 0
    for placed, (_, said) in zip(stream(), read_records(quality), strict=True):
        if not reasons_to_drop(said, unwanted):
            left += 1
            yield placed
    if not left:
        raise UserError("--filter: every text has one of these flags, so none is left; give fewer flags")


def enhanced_inputs(
    enhanced: dict[str, Path], known: Mapping[str, manifests.Description], explanations: Explanations = FIRST
) -> dict[str, manifests.Description]:
    files = dict(enhanced)
    if explanations.setting == "best":
        files |= {f"scores of {kind}": scores_file(file, explanations.scorer) for kind, file in enhanced.items()}
    return {name: manifests.describe(file, known.get(name)) for name, file in files.items()}
