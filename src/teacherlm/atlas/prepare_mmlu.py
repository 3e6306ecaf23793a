"""Make the question files of the MMLU experiments from the original archive.

The program writes three folders to OUTPUT/data/mmlu_data, one per setting:

  5-shot             individual_train/{domain}.5-shot-train.jsonl, a training set for each of the 57 domains
  5-shot-multitask   train.jsonl, 5 questions of each domain (the zero-shot setting uses the test set of this folder)
  full               train.jsonl, the auxiliary questions and 5 of each domain; auxillary_valid.jsonl, 5,000 other
                     auxiliary questions

Each folder also has individual_valid/{domain}.val.jsonl, individual_test/{domain}.test.jsonl, combined_valid.jsonl and
combined_test.jsonl. A line is {"question", "options": {"A": ..., "D": ...}, "answer", "dataset"}.
"""

import contextlib
import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from teacherlm.atlas.archives import unpack
from teacherlm.atlas.downloads import download
from teacherlm.catalog.benchmarks import load_benchmark
from teacherlm.catalog.prompts import LETTERS
from teacherlm.catalog.sources import read_split
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_folder
from teacherlm.core.flags import LIST_MISSING, flag, parse
from teacherlm.core.outputs import require_writable
from teacherlm.core.records import Record, write_records
from teacherlm.core.stage_run import StageRun

DATA_URL = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"
SPLITS = {"auxiliary_train": "train", "dev": "dev", "val": "validation", "test": "test"}
"""Maps each folder of the archive to the split in benchmarks/mmlu.yaml, which says how its files are read."""
MEMBER = re.compile(rf"(?:\./)?(?:[^/]+/)?({'|'.join(SPLITS)})/([^/.][^/]*\.csv)")
"""Matches the files of the archive that are read, for example data/test/anatomy_test.csv."""
VALIDATION = 5000
SEED = 10

Split = Mapping[str, Sequence[Record]]
"""Maps each domain to its questions."""


@dataclass(frozen=True)
class PrepareFlags:
    """Where the archive is, and where the question files are written."""

    output_directory: Path = flag(Path("data"), help="the folder to write to (default: data)")
    data_tar: Path | None = flag(None, excludes="source", help=f"the archive (default: download it from {DATA_URL})")
    data_directory: Path | None = flag(
        None, excludes="source", help="the folder of the unpacked archive, with dev/, test/ and so on"
    )
    list_missing: bool = flag(False, help=LIST_MISSING)


def main() -> None:
    flags = parse(
        PrepareFlags, __doc__, example="teacherlm prepare-mmlu --output_directory data/mmlu_data --data_tar data.tar"
    )
    output = flags.output_directory / "data" / "mmlu_data"
    require_writable(output)
    run = StageRun("prepare_mmlu", output)
    with contextlib.nullcontext() if flags.list_missing else run:
        prepare(run, flags)


def prepare(run: StageRun, flags: PrepareFlags) -> None:
    """Write the three folders unless that is done. With --list_missing, only print whether it is done."""
    output = run.output
    archive = flags.data_tar or output / "data.tar"
    if not flags.data_tar and not flags.data_directory and not flags.list_missing:
        download(DATA_URL, archive)
    origin = flags.data_directory or archive
    if not origin.exists():
        if flags.list_missing:
            print("0")
            return
        raise UserError(f"{origin}: no such file or folder; MMLU in its original form was expected")
    run.compare({}, {"archive": manifests.describe(origin, run.known.get("archive"))})
    if run.ends_here(flags.list_missing):
        return
    with contextlib.ExitStack() as stack:
        folder = flags.data_directory or unpacked(archive, stack)
        data = {name: dict(read_domains(folder, name)) for name in SPLITS}
    counts = {name: sum(map(len, domains.values())) for name, domains in data.items()}
    trees = {"5-shot": five_shot, "5-shot-multitask": five_shot_multitask, "full": full}
    for name, write in trees.items():
        with whole_folder(output / name) as tree:
            write(data, tree)
    run.finish({name: output / name for name in trees}, {**counts, "domains": len(data["test"])})
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"prepare_mmlu: {len(data['test'])} domains, {listed} questions -> {output}")


def unpacked(archive: Path, stack: contextlib.ExitStack) -> Path:
    """A temporary folder with dev/, test/ and so on, which is removed when the stack is closed.

    Raises:
        UserError: the archive is incomplete or hostile, or lacks a split.
    """
    if not archive.is_file():
        raise UserError(
            f"{archive}: not an ordinary file; MMLU's archive was expected (use --data_directory for a folder)"
        )
    place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    unpack(archive, MEMBER, place)
    for name in SPLITS:
        if not (place / name).is_dir():
            raise UserError(f"{archive}: it contains no file {name}/*.csv; MMLU in its original form was expected")
    return place


def read_domains(folder: Path, name: str) -> Iterator[tuple[str, list[Record]]]:
    """Yield (domain, its questions) for a folder of the archive, sorted by domain.

    Raises:
        UserError: a file is missing, or a row is malformed; the message names file and line.
    """
    benchmark = load_benchmark("mmlu")
    split = SPLITS[name]
    file_name = Path(benchmark.files[split]).name
    domains: dict[str, list[Record]] = {}
    for where, sample in read_split(benchmark, split, folder):
        question = benchmark.ask(sample, where)
        domain = sample[benchmark.file_field]
        domains.setdefault(domain, []).append(
            {
                "question": line_feeds(sample["question"]),
                "options": {letter: line_feeds(text) for letter, text in zip("ABCD", sample["choices"])},
                "answer": LETTERS[question.gold],
                "dataset": file_name.replace("*", domain).removesuffix(".csv"),
            }
        )
    yield from sorted(domains.items())


def line_feeds(text: str) -> str:
    """The text with "\\n" for every line break, as in the reference, which reads its files in text mode."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def five_shot(data: Mapping[str, Split], tree: Path) -> None:
    for domain, questions in data["dev"].items():
        write(tree / "individual_train" / f"{domain}.5-shot-train.jsonl", questions)
    write_evaluation(data, tree)


def five_shot_multitask(data: Mapping[str, Split], tree: Path) -> None:
    write(tree / "train.jsonl", together(data["dev"]))
    write_evaluation(data, tree)


def full(data: Mapping[str, Split], tree: Path) -> None:
    auxiliary = together(data["auxiliary_train"])
    random.Random(SEED).shuffle(auxiliary)
    write(tree / "auxillary_valid.jsonl", auxiliary[-VALIDATION:])  # the reference's spelling
    write(tree / "train.jsonl", auxiliary[:-VALIDATION] + together(data["dev"]))
    write_evaluation(data, tree)


def write_evaluation(data: Mapping[str, Split], tree: Path) -> None:
    for split, name, ending in (("val", "valid", "val"), ("test", "test", "test")):
        for domain, questions in data[split].items():
            write(tree / f"individual_{name}" / f"{domain}.{ending}.jsonl", questions)
        write(tree / f"combined_{name}.jsonl", together(data[split]))


def together(split: Split) -> list[Record]:
    return [question for questions in split.values() for question in questions]


def write(path: Path, questions: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_records(path, questions)
