"""Prepare a benchmark for the teacher, and post-process the teacher's texts.

Without arguments, this program does the next step for CREAK in the current folder, like the reference's command. It
reads the samples from ./CREAK if you saved a dataset there with save_to_disk (a copy is kept in CREAK.source),
otherwise from the source of the previous call, otherwise from the hub.

1. prepare: write CREAK.jsonl (each training sample with its prompt fields), the test set for evaluate/, and
   CREAK/, a DatasetDict with the same fields.
2. post-process, if CREAK_cot.jsonl (or another kind of explanation) exists: write CREAK_quality.jsonl with the faults
   of each text, and replace CREAK/ by the train Dataset with `cot`, `all`, `cot_tail`, `cot_first`, the control
   `cot_shuffled`, and the same of the other kinds (also `full_tail` if all three kinds exist). With --explanations,
   the dataset of several texts per sample has a name of its own, such as CREAK_all/.

Work that is done and unchanged is skipped.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from teacherlm.catalog.benchmarks import Benchmark, load_benchmark
from teacherlm.catalog.explanations import SETTINGS, Explanations
from teacherlm.catalog.prompt_sets import PromptSet, load_prompts
from teacherlm.catalog.prompts import DEFAULT
from teacherlm.catalog.sources import read_split, source_files
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_folder
from teacherlm.core.flags import LIST_MISSING, flag, parse
from teacherlm.core.lock import one_writer
from teacherlm.core.names import plain_name
from teacherlm.core.opening import open_unlinked
from teacherlm.core.outputs import require_file_place, require_folder_place, require_writable
from teacherlm.core.places import ROOT
from teacherlm.core.records import Record, read_records, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import plural
from teacherlm.dataset.dataset_folder import gather_types, write_dataset, write_dataset_dict
from teacherlm.dataset.post_process import PostProcessing, enhanced_files
from teacherlm.dataset.quality import FLAGS, read_filter
from teacherlm.dataset.saved_folder import is_theirs, save
from teacherlm.dataset.source_folder import describe_source, find_source, keep_source, source_in_words

FEWSHOT = "fewshot"
"""Folder in a test set's folder with few-shot examples, which are not in the test set."""
FEWSHOT_SAMPLES = 256
SAMPLES, TEXTS = "which samples, and where", "the teacher's texts"


@dataclass(frozen=True)
class PrepareFlags:
    """The benchmark to prepare or post-process, and the folders."""

    benchmark: str = flag("creak", help="name of a YAML in benchmarks/, or its path (default: creak)", group=SAMPLES)
    prompts: str = flag(DEFAULT, help="name of a YAML in prompts/, or its path (default: teacherlm)", group=SAMPLES)
    data: Path | None = flag(
        None,
        help="local folder with the benchmark's files, or a DatasetDict saved with save_to_disk (default: TITLE/ in "
        "--output_dir if you saved it there, otherwise the source of the previous call, otherwise the hub)",
        group=SAMPLES,
    )
    output_dir: Path = flag(Path(), help="folder for the files (default: the current folder)", group=SAMPLES)
    test_dir: Path = flag(
        ROOT / "evaluate" / "lm_eval" / "datasets",
        help="folder in which the folder of the test set is made (default: evaluate/lm_eval/datasets)",
        group=SAMPLES,
    )
    test_only: bool = flag(False, help="only make the test set", group=SAMPLES)
    limit: int | None = flag(None, help="maximum number of training samples", least=1, group=SAMPLES)
    post_process: bool = flag(False, help="only post-process the teacher's texts in --output_dir", group=TEXTS)
    enhanced: tuple[Path, ...] = flag(
        (),
        help="the teachers' files that are post-processed, TITLE_cot.jsonl, TITLE_error.jsonl and others, each in any "
        "folder (default: those in --output_dir)",
        group=TEXTS,
    )
    filter: tuple[str, ...] = flag(
        (),
        parse=read_filter,
        metavar="FLAG[,FLAG]",
        help="drop samples with one of these flags in post-processing, and write TITLE_without-FLAG-FLAG; flags: "
        + ", ".join(FLAGS),
        group=TEXTS,
    )
    explanations: str = flag(
        "first",
        choices=SETTINGS,
        help="which of a sample's texts the dataset has, if the teacher wrote several: the first one; all, or "
        "each_epoch (a row per text; finetuning with each_epoch takes one of them in each epoch); or the best one by "
        "--scorer",
        group=TEXTS,
    )
    scorer: str = flag(
        "", help="for --explanations best: the model whose scores count (see `teacherlm score-texts`)", group=TEXTS
    )
    seed: int = flag(
        0, help="seed of the control fields KIND_shuffled; another seed makes another dataset", least=0, group=TEXTS
    )
    list_missing: bool = flag(False, help=LIST_MISSING, group=SAMPLES)

    @property
    def texts(self) -> Explanations:
        """Which texts the dataset has.

        Raises:
            UserError: --scorer is missing, or does not fit.
        """
        if bool(self.scorer) != (self.explanations == "best"):
            raise UserError("--scorer: --explanations best needs the name of a model, and no other value takes it")
        return Explanations(self.explanations, self.scorer and plain_name(self.scorer, "--scorer"))


def main() -> None:
    flags = parse(
        PrepareFlags, __doc__, example="teacherlm prepare --benchmark creak --data /data/creak --output_dir creak"
    )
    _ = flags.texts  # a mistake in them is found before any work
    benchmark, prompts = load_benchmark(flags.benchmark), load_prompts(flags.prompts)
    if flags.enhanced and not flags.post_process:
        raise UserError("--enhanced: these files are read only with --post_process")
    jsonl, test = flags.output_dir / f"{benchmark.title}.jsonl", flags.test_dir / benchmark.name
    if flags.test_only:
        require_writable(flags.test_dir)
        with StageRun("prepare", test) as run:
            prepare_tests(run, benchmark, prompts, flags.data, flags.output_dir)
    elif flags.list_missing:
        if not is_done(flags, benchmark, prompts):
            print(0)
    else:
        require_writable(flags.output_dir)
        if not flags.post_process:
            require_writable(flags.test_dir)
        # The command takes the locks of all its outputs here, so its stages take none.
        with one_writer(jsonl, *([] if flags.post_process else [test])):
            make(flags, benchmark, prompts)


def make(flags: PrepareFlags, benchmark: Benchmark, prompts: PromptSet) -> None:
    """Prepare and post-process, unless it is already done."""
    enhanced = files_of(flags, benchmark, prompts)
    if flags.post_process and not enhanced:
        first, *others = (f"{benchmark.title}_{kind}.jsonl" for kind in prompts.kinds)
        none = f", and no {' or '.join(others)}" if others else ""
        raise UserError(f"{flags.output_dir / first}: no such file{none}; run enhance.sh first")
    for file in flags.enhanced:
        if not file.is_file():
            raise UserError(f"{file}: no such file; run enhance.sh first")
    if not flags.post_process:
        prepare(benchmark, prompts, flags.data, flags.output_dir, flags.test_dir, flags.limit)
    if enhanced:
        if is_theirs(flags.output_dir / benchmark.title):
            find_source(benchmark, None, flags.output_dir)
            keep_source(benchmark, flags.output_dir)
        post_processing(flags, benchmark, prompts, enhanced).run()


def post_processing(
    flags: PrepareFlags, benchmark: Benchmark, prompts: PromptSet, enhanced: dict[str, Path]
) -> PostProcessing:
    return PostProcessing(
        benchmark=benchmark,
        prompts=prompts,
        enhanced=enhanced,
        folder=flags.output_dir,
        test=flags.test_dir / benchmark.name,
        unwanted=flags.filter,
        explanations=flags.texts,
        seed=flags.seed,
    )


def files_of(flags: PrepareFlags, benchmark: Benchmark, prompts: PromptSet) -> dict[str, Path]:
    """Kind of explanation -> the file with the texts: the files of --enhanced, or those in --output_dir.

    Raises:
        UserError: a file of --enhanced does not have the name of a kind, or two files have the same name.
    """
    if not flags.enhanced:
        return enhanced_files(benchmark, flags.output_dir, prompts)
    kinds = {f"{benchmark.title}_{kind}.jsonl": kind for kind in prompts.kinds}
    found: dict[str, Path] = {}
    for file in flags.enhanced:
        if file.name not in kinds:
            raise UserError(f"--enhanced: {file}: one of the names {', '.join(kinds)} was expected")
        if kinds[file.name] in found:
            raise UserError(f"--enhanced: {file}: there is another file of this kind, {found[kinds[file.name]]}")
        found[kinds[file.name]] = file
    return {kind: found[kind] for kind in prompts.kinds if kind in found}


def is_done(flags: PrepareFlags, benchmark: Benchmark, prompts: PromptSet) -> bool:
    """Whether the command without --list_missing would do nothing."""
    folder = flags.output_dir
    jsonl = folder / f"{benchmark.title}.jsonl"
    enhanced = files_of(flags, benchmark, prompts)
    test = flags.test_dir / benchmark.name
    if flags.post_process and not (enhanced and all(file.exists() for file in enhanced.values())):
        return False
    if not flags.post_process:
        run = StageRun("prepare", jsonl)
        compare_records(run, benchmark, prompts, find_source(benchmark, flags.data, folder), flags.limit)
        if not run.is_done:
            return False
    if enhanced:
        return post_processing(flags, benchmark, prompts, enhanced).is_done()
    return prompts_run(benchmark, prompts, folder / benchmark.title, jsonl, test).is_done


# ---------------------------------------------------------------------------------------------------------- prepare


def prepare(
    benchmark: Benchmark, prompts: PromptSet, data: Path | None, folder: Path, test_dir: Path, limit: int | None
) -> None:
    """Write TITLE.jsonl, the test set and the DatasetDict TITLE/, unless they exist and match their source."""
    source = find_source(benchmark, data, folder)
    jsonl, saved, test = folder / f"{benchmark.title}.jsonl", folder / benchmark.title, test_dir / benchmark.name
    require_file_place(jsonl)
    for place in (saved, test):
        require_folder_place(place)
    run = StageRun("prepare", jsonl)
    if run.manifest is None and jsonl.exists() and not mark_of(jsonl).exists():
        if jsonl.resolve() in (file.resolve() for file in source_files(benchmark, source, ("train", "test"))):
            raise UserError(
                f"{jsonl}: this file has samples of the benchmark, and the prepared records would have the same name; "
                "give another --output_dir"
            )
        print(f"prepare: {jsonl} exists without a manifest: it is used as it is; remove it to make it again")
        return
    compare_records(run, benchmark, prompts, source, limit)
    words = source_in_words(run.inputs["source"])
    if run.is_done:
        run.say_done(because=f"{run.manifest_path} matches {benchmark.title}'s source, {words}")
    else:
        run.say_again()
        if run.manifest is not None:
            print(f"prepare: the source is {words}")
        # A mistake in one split leaves both outputs unchanged.
        with own_work(jsonl), saving_tests(benchmark, prompts, source, test) as tested:
            # Only the dataset below needs the types. They are gathered here so that incompatible types fail first.
            train = write_records(jsonl, gather_types(prepared(benchmark, prompts, "train", source, limit), {}))
        said = f", {test} has {plural(tested, 'test sample')}" if tested is not None else ""
        print(f"prepare: {jsonl} has {plural(train, 'training sample')}{said}")
        counts = {"train": train} | ({"test": tested} if tested is not None else {})
        run.finish({"records": jsonl, "test set": test}, counts)
        mark_of(jsonl).unlink()
    if source == saved:
        source = keep_source(benchmark, folder)
    if enhanced := enhanced_files(benchmark, folder, prompts):
        say_stale(enhanced, jsonl)
    else:
        save_prompts(benchmark, prompts, source, saved, jsonl, test)


def compare_records(
    run: StageRun, benchmark: Benchmark, prompts: PromptSet, source: Path | None, limit: int | None
) -> None:
    """Compare the run of TITLE.jsonl with its work: the samples of this source."""
    inputs = describe_source(benchmark, prompts, source, run.output.parent, run.known)
    run.compare({"benchmark": benchmark.name, "limit": limit}, inputs)


def say_stale(enhanced: dict[str, Path], jsonl: Path) -> None:
    """Print which of the teacher's files were made from records that differ from the prepared ones."""
    for file in enhanced.values():
        manifest = manifests.read_manifest(manifests.manifest_of(file))
        records = (manifest or {}).get("inputs", {}).get("records")
        if records is not None and manifests.describe(jsonl, records)["sha256"] != records["sha256"]:
            print(f"prepare: {file} was made from an earlier {jsonl.name}; run enhance.sh again")


def prepare_tests(run: StageRun, benchmark: Benchmark, prompts: PromptSet, data: Path | None, folder: Path) -> None:
    """Write only the test set, with few-shot examples if the source has their split."""
    test = run.output
    require_folder_place(test)
    source = find_source(benchmark, data, folder)
    run.compare({}, describe_source(benchmark, prompts, source, folder, run.known, ("test",)))
    if run.is_done:
        run.say_done(because=f"{run.manifest_path} matches {benchmark.title}'s source")
        return
    with saving_tests(benchmark, prompts, source, test) as tested:
        pass
    if tested is not None:
        run.finish({"dataset": test}, {"test": tested})
        print(f"prepare: {test} has {plural(tested, 'test sample')}")


def mark_of(jsonl: Path) -> Path:
    """A file beside TITLE.jsonl that marks it as made by this script, not by the user, while it has no manifest."""
    return jsonl.with_name(f".{jsonl.name}.begun")


@contextlib.contextmanager
def own_work(jsonl: Path) -> Iterator[None]:
    """Mark the file while it is made. After a kill the mark stays. After an error without a new file it is removed."""
    there = jsonl.exists()
    os.close(open_unlinked(mark_of(jsonl)))
    try:
        yield
    except Exception:
        if there or not jsonl.exists():
            mark_of(jsonl).unlink()
        raise


def prepared(
    benchmark: Benchmark, prompts: PromptSet, split: str, data: Path | None, limit: int | None
) -> Iterator[tuple[str, Record]]:
    for where, sample in read_split(benchmark, split, data, limit):
        yield where, benchmark.prepare(sample, where, prompts)


def test_samples(benchmark: Benchmark, prompts: PromptSet, data: Path | None) -> Iterator[tuple[str, Record]]:
    for where, sample in read_split(benchmark, "test", data):
        benchmark.refuse_reserved(sample, where, prompts)  # prompts are added to it in the DatasetDict
        yield where, benchmark.test_sample(sample, where)


@contextlib.contextmanager
def saving_tests(benchmark: Benchmark, prompts: PromptSet, source: Path | None, test: Path) -> Iterator[int | None]:
    """Write the test set with few-shot examples; yield its number of samples. It appears if the block raises no error.

    If the user has made the test set, it is not changed, and None is yielded.
    """
    if is_theirs(test):
        print(f"prepare: {test} was not made by this script: it is used as it is; remove it to make it again")
        yield None
        return
    with whole_folder(test) as whole:
        tested = write_dataset(partial(test_samples, benchmark, prompts, source), whole)
        flaw = save_fewshot(benchmark, source, whole)
        yield tested
    # A flaw in the training split ends the block above with the same words, so they are printed only here.
    if flaw:
        print(f"prepare: there are no few-shot examples: {flaw}")


def save_fewshot(benchmark: Benchmark, data: Path | None, test: Path) -> str:
    """Save examples for few-shot prompts in the test set's folder.

    Returns:
        Why there are none, for example because the source does not have their split; "" if they are saved.
    """
    try:
        save(partial(fewshot_samples, benchmark, data), test / FEWSHOT)
    except UserError as error:
        return str(error)
    return ""


def fewshot_samples(benchmark: Benchmark, data: Path | None) -> Iterator[tuple[str, Record]]:
    """Examples for few-shot prompts: the split `dev` if there is one (MMLU's has five per subject), otherwise the first
    samples of the training split."""
    split, count = ("dev", None) if "dev" in benchmark.splits else ("train", FEWSHOT_SAMPLES)
    for where, sample in read_split(benchmark, split, data, count):
        yield where, benchmark.test_sample(sample, where)


def save_prompts(
    benchmark: Benchmark, prompts: PromptSet, source: Path | None, saved: Path, jsonl: Path, test: Path
) -> None:
    """Save the DatasetDict of the training samples and the test split's samples, both with prompts."""
    run = prompts_run(benchmark, prompts, saved, jsonl, test)
    if run.is_done:
        return
    test_name = benchmark.splits["test"]
    streams = {
        "train": partial(stream_file, jsonl),
        test_name: partial(prepared, benchmark, prompts, "test", source, None),
    }
    with whole_folder(saved) as whole:
        counts = write_dataset_dict(streams, whole)
    run.finish({"dataset": saved}, counts)
    print(f"prepare: {saved} is a DatasetDict of {', '.join(f'{name} {count}' for name, count in counts.items())}")


def prompts_run(benchmark: Benchmark, prompts: PromptSet, saved: Path, jsonl: Path, test: Path) -> StageRun:
    """The run of a DatasetDict, compared with its work. Its test split and the test set have the same samples."""
    run = StageRun("prepare", saved)
    places = {"records": jsonl, "test set": test, "benchmark": benchmark.path}
    found = {name: manifests.describe(path, run.known.get(name)) for name, path in places.items() if path.exists()}
    run.compare({}, {**found, "prompts": prompts.digest(benchmark.is_open)})
    return run


def stream_file(jsonl: Path) -> Iterator[tuple[str, Record]]:
    for number, record in read_records(jsonl):
        yield f"{jsonl}, line {number}", record
