"""Post-processing: the dataset for finetuning students is made from the teacher's texts of one or several kinds."""

import itertools
import operator
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from teacherlm.dataset.joined import joined_records, with_scores
from teacherlm.dataset.quality import (
    dropped_samples,
    kinds_with_ends,
    measure_quality,
    quality_file,
    quality_inputs,
    reasons_to_drop,
)
from teacherlm.dataset.saved_folder import refuse_theirs, save
from teacherlm.dataset.training_rows import training_rows


def enhanced_files(benchmark: Benchmark, folder: Path, prompts: PromptSet) -> dict[str, Path]:
    """Kind of explanation -> the file with the teacher's texts, if the file exists."""
    files = {kind: folder / f"{benchmark.title}_{kind}.jsonl" for kind in prompts.kinds}
    return {kind: file for kind, file in files.items() if file.exists()}


@dataclass(frozen=True)
class PostProcessing:
    """What is made from a teacher's texts.

    Attributes:
        enhanced: kind of explanation -> the file with the texts.
        folder: the folder of the quality file and of the dataset.
        test: the folder of the test set. Texts that overlap with it get a flag.
        unwanted: the flags whose samples are dropped; with a row per text, the flags whose texts are dropped.
        explanations: which of a sample's texts the dataset has.
        seed: seed of the control fields (training_rows.py).
    """

    benchmark: Benchmark
    prompts: PromptSet
    enhanced: dict[str, Path]
    folder: Path
    test: Path
    unwanted: Sequence[str]
    explanations: Explanations = FIRST
    seed: int = 0

    @property
    def of_first_texts(self) -> "PostProcessing":
        """The same with the first text of each sample, whose quality is always measured."""
        return replace(self, explanations=FIRST)

    def with_scores(self) -> "PostProcessing":
        """The same without the kinds of explanation that `best` cannot choose from.

        Raises:
            UserError: there are no scores yet.
        """
        if self.explanations.setting == "first":
            return self
        return replace(self, enhanced=with_scores(self.enhanced, self.explanations))

    @property
    def label(self) -> str:
        """A part of the quality file's name. `all` and `each_epoch` have the same texts, so they share a file."""
        return "_texts" if self.explanations.has_every_text else self.explanations.label

    @property
    def quality(self) -> Path:
        return quality_file(self.folder, f"{self.benchmark.title}{self.label}")

    @property
    def saved(self) -> Path:
        """The folder of the dataset."""
        name = f"{self.benchmark.title}{self.explanations.label}"
        return self.folder / "-".join([f"{name}_without" if self.unwanted else name, *self.unwanted])

    def stream(self) -> Iterator[tuple[str, Record]]:
        """(where it comes from, the joined record) of each sample or text."""
        return joined_records(self.enhanced, self.explanations)

    def measure(self) -> None:
        """Write the quality file if it is missing or out of date."""
        kinds = {kind: self.prompts.kinds[kind] for kind in self.enhanced}
        measure_quality(self.quality_run(), self.benchmark, kinds, self.stream, self.test)

    def run(self) -> None:
        """Save the train Dataset with the teacher's texts and the fields for finetuning, such as `cot_tail`."""
        self.of_first_texts.measure()
        require_folder_place(self.saved)
        chosen = self.with_scores()
        if chosen.explanations.setting != "first":
            chosen.measure()
        chosen.save()

    def is_done(self) -> bool:
        """Whether `run` would do nothing."""
        if not self.of_first_texts.quality_run().is_done:
            return False
        try:
            chosen = self.with_scores()
        except UserError:  # there are no scores yet; `run` says so
            return False
        return chosen.quality_run().is_done and chosen.dataset_run().is_done

    def save(self) -> None:
        """Save the dataset, if it is missing or out of date."""
        run, saved, unwanted = self.dataset_run(), self.saved, self.unwanted
        if run.is_done:
            run.say_done()
            return
        if saved.name != self.benchmark.title:
            refuse_theirs(saved)
        run.say_again()
        outputs, counts = {"dataset": saved}, {}
        kept = self.stream
        if unwanted and self.explanations.has_every_text:
            outputs["dropped"] = dropped_list(saved)
            counts = list_dropped(self.quality, unwanted, outputs["dropped"])
            kept = partial(without_flagged, self.stream, self.quality, unwanted)
        elif unwanted:
            dropped = dropped_samples(self.quality, unwanted)
            kept = partial(without, self.stream, dropped)
            reasons = Counter(why for reasons in dropped.values() for why in reasons)
            counts = {
                "dropped": len(dropped),
                "dropped_for": dict(sorted(reasons.items())),
                "dropped_samples": [*dropped],
            }
        with training_rows(kept, self.prompts, [*self.enhanced], self.seed, saved.parent) as (rows, typed):
            count = save(rows, saved, typed)
        run.finish(outputs, {"train": count, **counts})
        said = f"; the filter dropped {counts['dropped']}" if unwanted else ""
        what = "text" if self.explanations.has_every_text else "sample"
        print(f"post-process: {saved} has {plural(count, what)} with {', '.join(self.enhanced)}{said}")

    def quality_run(self) -> StageRun:
        """The run of TITLE_quality.jsonl, or of the same file for other texts than the first ones, compared with its
        work."""
        run = StageRun("quality", self.quality)
        described = self.described(run.known)
        texts = "all" if self.explanations.has_every_text else self.explanations.label.removeprefix("_")
        ended = kinds_with_ends(self.enhanced)
        arguments = ({"texts": texts} if texts else {}) | ({"ended": ended} if ended else {})
        run.compare(arguments, quality_inputs(self.benchmark, self.prompts, described, self.test, run.known))
        return run

    def dataset_run(self) -> StageRun:
        """The run of a dataset for finetuning, compared with its work: the enhanced files, the prompts, the flags if
        samples are dropped, and the scores if they choose the texts."""
        run = StageRun("post_process", self.saved, label="post-process")
        inputs = {**self.described(run.known), "prompts": self.prompts.digest(self.benchmark.is_open)}
        if self.unwanted and self.quality.is_file():
            inputs["quality"] = manifests.describe(self.quality, run.known.get("quality"))
        arguments: dict[str, Any] = {"filter": list(self.unwanted)} if self.unwanted else {}
        arguments |= {} if self.explanations.setting == "first" else {"explanations": self.explanations.setting}
        arguments["seed"] = self.seed
        arguments |= {"shuffled": "any other sample"} if self.benchmark.is_open else {}
        run.compare(arguments, inputs)
        return run

    def described(self, known: Mapping[str, manifests.Description]) -> dict[str, manifests.Description]:
        """The descriptions of the enhanced files, and of their scores if they choose the texts."""
        files = dict(self.enhanced)
        if self.explanations.setting == "best":
            scorer = self.explanations.scorer
            files |= {f"scores of {kind}": scores_file(file, scorer) for kind, file in self.enhanced.items()}
        return {name: manifests.describe(file, known.get(name)) for name, file in files.items()}


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
