"""Prepare a benchmark for the teacher, and post-process what the teacher wrote.

Without arguments, from this folder, it does what is to be done for CREAK, as the reference's command does. The samples
come from ./CREAK when you saved a dataset there with save_to_disk (a copy stays in CREAK.source); else from where they
came before; else from the hub.

1. prepare: CREAK.jsonl (each training sample with its four prompt fields), the test set for evaluate/, and CREAK/, a
   DatasetDict with the same fields;
2. post-process, once CREAK_cot.jsonl (or _error, _fundamental) is there: CREAK_quality.jsonl says what is wrong with
   which text; CREAK/ becomes the train Dataset with `cot`, `all`, `cot_tail` (`error_tail`, `fundamental_tail`, and
   `full_tail` when all three kinds are there).

What is done and unchanged is skipped.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from teacherlm.catalog.benchmarks import Benchmark, load_benchmark
from teacherlm.catalog.prompts import prompts_digest
from teacherlm.catalog.sources import read_split
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_folder
from teacherlm.core.flags import LIST_MISSING, flag, parse
from teacherlm.core.lock import one_writer
from teacherlm.core.opening import open_unlinked
from teacherlm.core.outputs import require_file_place, require_folder_place, require_writable
from teacherlm.core.places import ROOT
from teacherlm.core.records import Record, read_records, write_records
from teacherlm.core.stage_run import StageRun
from teacherlm.dataset.dataset_folder import gather_types, write_dataset, write_dataset_dict
from teacherlm.dataset.post_process import enhanced_files, is_post_processed, post_process
from teacherlm.dataset.quality import FLAGS, read_filter
from teacherlm.dataset.saved_folder import is_theirs, save
from teacherlm.dataset.source_folder import describe_source, find_source, keep_source, source_in_words

FEWSHOT = "fewshot"
"""Folder in a test set's: examples that are not in it."""
FEWSHOT_SAMPLES = 256


@dataclass(frozen=True)
class PrepareFlags:
    """Which benchmark is prepared or post-processed, and where."""

    benchmark: str = flag("creak", help="name of a YAML in benchmarks/, or its path (default: creak)")
    data: Path | None = flag(
        None,
        help="local folder with the benchmark's files, or a DatasetDict saved with save_to_disk (default: TITLE/ in "
        "--output_dir when you saved it there, or what was read before, or the hub)",
    )
    output_dir: Path = flag(Path(), help="where the files go (default: this folder)")
    test_dir: Path = flag(
        ROOT / "evaluate" / "lm_eval" / "datasets",
        help="where the folder with the test set goes (default: evaluate/lm_eval/datasets)",
    )
    test_only: bool = flag(False, help="make the test set and nothing else")
    limit: int | None = flag(None, help="the first so many training samples only", least=1)
    post_process: bool = flag(False, help="post-process what is in --output_dir, and only that")
    filter: tuple[str, ...] = flag(
        (),
        parse=read_filter,
        metavar="FLAG[,FLAG]",
        help="post-process without the samples that have one of these flags, into TITLE_without-FLAG-FLAG: "
        + ", ".join(FLAGS),
    )
    list_missing: bool = flag(False, help=LIST_MISSING)


def main() -> None:
    flags = parse(
        PrepareFlags, __doc__, example="teacherlm prepare --benchmark creak --data /data/creak --output_dir creak"
    )
    benchmark = load_benchmark(flags.benchmark)
    jsonl, test = flags.output_dir / f"{benchmark.title}.jsonl", flags.test_dir / benchmark.name
    if flags.test_only:
        require_writable(flags.test_dir)
        with StageRun("prepare", test) as run:
            prepare_tests(run, benchmark, flags.data, flags.output_dir)
    elif flags.list_missing:
        if not is_done(flags, benchmark):
            print(0)
    else:
        require_writable(flags.output_dir)
        if not flags.post_process:
            require_writable(flags.test_dir)
        # One lock for all that this command makes: no stage of it takes another.
        with one_writer(jsonl, *([] if flags.post_process else [test])):
            make(flags, benchmark)


def make(flags: PrepareFlags, benchmark: Benchmark) -> None:
    """Prepare and post-process, as far as it is not done."""
    enhanced = enhanced_files(benchmark, flags.output_dir)
    if flags.post_process and not enhanced:
        expected = flags.output_dir / f"{benchmark.title}_cot.jsonl"
        raise UserError(f"{expected}: no such file, and no _error or _fundamental; run enhance.sh first")
    if not flags.post_process:
        prepare(benchmark, flags.data, flags.output_dir, flags.test_dir, flags.limit)
    if enhanced:
        if is_theirs(flags.output_dir / benchmark.title):
            find_source(benchmark, None, flags.output_dir)
            keep_source(benchmark, flags.output_dir)
        post_process(benchmark, enhanced, flags.output_dir, flags.test_dir / benchmark.name, flags.filter)


def is_done(flags: PrepareFlags, benchmark: Benchmark) -> bool:
    """Whether the command without --list_missing would do nothing."""
    folder = flags.output_dir
    jsonl = folder / f"{benchmark.title}.jsonl"
    enhanced = enhanced_files(benchmark, folder)
    if flags.post_process and not enhanced:
        return False
    if not flags.post_process:
        run = StageRun("prepare", jsonl)
        compare_records(run, benchmark, find_source(benchmark, flags.data, folder), flags.limit)
        if not run.is_done:
            return False
    if enhanced:
        return is_post_processed(benchmark, enhanced, folder, flags.test_dir / benchmark.name, flags.filter)
    return prompts_run(benchmark, folder / benchmark.title, jsonl, flags.test_dir / benchmark.name).is_done


# ---------------------------------------------------------------------------------------------------------- prepare


def prepare(benchmark: Benchmark, data: Path | None, folder: Path, test_dir: Path, limit: int | None) -> None:
    """Write TITLE.jsonl, the test set and the DatasetDict TITLE/, unless they are there and match their source."""
    source = find_source(benchmark, data, folder)
    jsonl, saved, test = folder / f"{benchmark.title}.jsonl", folder / benchmark.title, test_dir / benchmark.name
    require_file_place(jsonl)
    for place in (saved, test):
        require_folder_place(place)
    run = StageRun("prepare", jsonl)
    if run.manifest is None and jsonl.exists() and not mark_of(jsonl).exists():
        print(f"prepare: {jsonl} is there and has no manifest: taken as it is; remove it to have it made again")
        return
    compare_records(run, benchmark, source, limit)
    words = source_in_words(run.inputs["source"])
    if run.is_done:
        run.say_done(because=f"{run.manifest_path} matches {benchmark.title}'s source, {words}")
    else:
        run.say_again()
        if run.manifest is not None:
            print(f"prepare: the source is {words}")
        # A mistake in either split leaves both results as they were.
        with own_work(jsonl), saving_tests(benchmark, source, test) as tested:
            # The types are gathered although only the dataset below needs them: so they fail here, or not at all.
            train = write_records(jsonl, gather_types(prepared(benchmark, "train", source, limit), {}))
        said = f", {test} has {tested} test samples" if tested is not None else ""
        print(f"prepare: {jsonl} has {train} training samples{said}")
        counts = {"train": train} | ({"test": tested} if tested is not None else {})
        run.finish({"records": jsonl, "test set": test}, counts)
        mark_of(jsonl).unlink()
    if source == saved:
        source = keep_source(benchmark, folder)
    if enhanced := enhanced_files(benchmark, folder):
        say_stale(enhanced, jsonl)
    else:
        save_prompts(benchmark, source, saved, jsonl, test)


def compare_records(run: StageRun, benchmark: Benchmark, source: Path | None, limit: int | None) -> None:
    """Compare the run of TITLE.jsonl with the work that it is: the samples of this source."""
    inputs = describe_source(benchmark, source, run.output.parent, run.known)
    run.compare({"benchmark": benchmark.name, "limit": limit}, inputs)


def say_stale(enhanced: dict[str, Path], jsonl: Path) -> None:
    """Say which of the teacher's files were made from other records than the prepared ones."""
    for file in enhanced.values():
        manifest = manifests.read_manifest(manifests.manifest_of(file))
        records = (manifest or {}).get("inputs", {}).get("records")
        if records is not None and manifests.describe(jsonl, records)["sha256"] != records["sha256"]:
            print(f"prepare: {file} was made from an earlier {jsonl.name}; run enhance.sh again")


def prepare_tests(run: StageRun, benchmark: Benchmark, data: Path | None, folder: Path) -> None:
    """Write the test set alone, with its few-shot examples when their split is there."""
    test = run.output
    require_folder_place(test)
    source = find_source(benchmark, data, folder)
    run.compare({}, describe_source(benchmark, source, folder, run.known, ("test",)))
    if run.is_done:
        run.say_done(because=f"{run.manifest_path} matches {benchmark.title}'s source")
        return
    with saving_tests(benchmark, source, test) as tested:
        pass
    if tested is not None:
        run.finish({"dataset": test}, {"test": tested})
        print(f"prepare: {test} has {tested} test samples")


def mark_of(jsonl: Path) -> Path:
    """A mark that lies beside a file without a manifest when the file is this script's own, not the user's."""
    return jsonl.with_name(f".{jsonl.name}.begun")


@contextlib.contextmanager
def own_work(jsonl: Path) -> Iterator[None]:
    """Mark the file while it is made; a kill leaves the mark, a mistake that leaves no new file does not."""
    there = jsonl.exists()
    os.close(open_unlinked(mark_of(jsonl)))
    try:
        yield
    except Exception:
        if there or not jsonl.exists():
            mark_of(jsonl).unlink()
        raise


def prepared(benchmark: Benchmark, split: str, data: Path | None, limit: int | None) -> Iterator[tuple[str, Record]]:
    for where, sample in read_split(benchmark, split, data, limit):
        yield where, benchmark.prepare(sample, where)


def test_samples(benchmark: Benchmark, data: Path | None) -> Iterator[tuple[str, Record]]:
    for where, sample in read_split(benchmark, "test", data):
        benchmark.refuse_reserved(sample, where)  # it gets prompts in the DatasetDict
        yield where, benchmark.test_sample(sample, where)


@contextlib.contextmanager
def saving_tests(benchmark: Benchmark, source: Path | None, test: Path) -> Iterator[int | None]:
    """Write the test set with its few-shot examples, there when the block ends well; yields the number of samples.

    A test set of the user's own stays as it is: then it is None.
    """
    if is_theirs(test):
        print(f"prepare: {test} is there and this script did not make it: taken as it is; remove it to have it made")
        yield None
        return
    with whole_folder(test) as whole:
        tested = write_dataset(partial(test_samples, benchmark, source), whole)
        save_fewshot(benchmark, source, whole)
        yield tested


def save_fewshot(benchmark: Benchmark, data: Path | None, test: Path) -> None:
    """Put examples for few-shot prompts beside the test set, if their split is there."""
    try:
        save(partial(fewshot_samples, benchmark, data), test / FEWSHOT)
    except UserError as error:
        print(f"prepare: without few-shot examples: {error}")


def fewshot_samples(benchmark: Benchmark, data: Path | None) -> Iterator[tuple[str, Record]]:
    """Examples for few-shot prompts: all of the split `dev`, where there is one (MMLU's five a subject), else the first
    of the training split."""
    split, count = ("dev", None) if "dev" in benchmark.splits else ("train", FEWSHOT_SAMPLES)
    for where, sample in read_split(benchmark, split, data, count):
        yield where, benchmark.test_sample(sample, where)


def save_prompts(benchmark: Benchmark, source: Path | None, saved: Path, jsonl: Path, test: Path) -> None:
    """Save the DatasetDict of the prepared training samples and the test split's samples, both with prompts."""
    run = prompts_run(benchmark, saved, jsonl, test)
    if run.is_done:
        return
    test_name = benchmark.splits["test"]
    streams = {"train": partial(stream_file, jsonl), test_name: partial(prepared, benchmark, "test", source, None)}
    with whole_folder(saved) as whole:
        counts = write_dataset_dict(streams, whole)
    run.finish({"dataset": saved}, counts)
    print(f"prepare: {saved} is a DatasetDict of {', '.join(f'{name} {count}' for name, count in counts.items())}")


def prompts_run(benchmark: Benchmark, saved: Path, jsonl: Path, test: Path) -> StageRun:
    """The run of a DatasetDict, compared with its work; its test split is of the samples that the test set is of."""
    run = StageRun("prepare", saved)
    places = {"records": jsonl, "test set": test, "benchmark": benchmark.path}
    found = {name: manifests.describe(path, run.known.get(name)) for name, path in places.items() if path.exists()}
    run.compare({}, {**found, "prompts": prompts_digest()})
    return run


def stream_file(jsonl: Path) -> Iterator[tuple[str, Record]]:
    for number, record in read_records(jsonl):
        yield f"{jsonl}, line {number}", record
