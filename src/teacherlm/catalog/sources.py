"""The samples of a benchmark, read from the hub, from a folder with the authors' files, or from a saved dataset."""

import codecs
import csv
import functools
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.core.errors import UserError, reason
from teacherlm.core.limits import LINE_BYTES, LIST_BYTES, LIST_PARTS, LIST_VALUES, ROW_COMMAS
from teacherlm.core.places import require_hub_cache
from teacherlm.core.records import COMPRESSED, Flaw, Record, checked, open_bytes, parse_json, read_records
from teacherlm.core.saved_datasets import is_saved, load_saved, require_plain, saved_files
from teacherlm.core.terminal import plural, shown

Sample = tuple[str, Record]
"""(its place, for messages; its fields)"""


def read_split(
    benchmark: Benchmark, split: str, data: Path | None = None, limit: int | None = None
) -> Iterator[Sample]:
    """Yield the samples of a split, in the source's order.

    Args:
        benchmark: the benchmark that the samples belong to.
        split: "train", "test" or another key of the benchmark's `splits`.
        data: a folder with the benchmark's `files`, or a folder that `datasets` saved. None means the benchmark's
            `local` folder, or the hub if it has none.
        limit: the maximum number of samples.

    Raises:
        UserError: the data is missing, a file does not have its expected format, or a sample cannot be a record.
    """
    if split not in benchmark.splits:
        raise UserError(f"{benchmark.path}: no split {split!r}; there are: {', '.join(benchmark.splits)}")
    if data is None and benchmark.local is not None:
        data = benchmark.path.parent / benchmark.local
    if data is None:
        samples = read_hub(benchmark, split)
    elif is_saved(data):
        samples = read_saved(benchmark, split, data)
    else:
        samples = read_files(benchmark, split, data)
    return ((where, checked(sample, where)) for where, sample in itertools.islice(samples, limit))


def source_files(benchmark: Benchmark, data: Path | None, splits: Iterable[str] | None = None) -> list[Path]:
    """The local files from which the benchmark's splits (all, or some) are read. If the hub is the source, none."""
    if data is None:
        if benchmark.local is None:
            return []
        data = benchmark.path.parent / benchmark.local
    if is_saved(data):
        return saved_files(data)
    return sorted({file for split in splits or benchmark.splits for file in split_files(benchmark, split, data)})


def split_files(benchmark: Benchmark, split: str, data: Path) -> list[Path]:
    if not data.is_dir():
        raise UserError(f"{data}: no such folder; the data of {benchmark.title} was expected there")
    pattern = benchmark.files.get(split)
    if pattern is None:
        raise UserError(f"{benchmark.path}: files: there is no entry for the split {split!r}")
    found = sorted({file for ending in ("", *COMPRESSED) for file in data.glob(pattern + ending)})
    if not found:
        raise UserError(f"{data / pattern}: no such file; {benchmark.title}'s {split} samples were expected there")
    by_name: dict[Path, Path] = {}
    for file in found:
        other = by_name.setdefault(unpacked(file), file)
        if other != file:
            raise UserError(f"{other}: {file.name} exists as well; remove one of them")
    return found


def unpacked(file: Path) -> Path:
    """The path without .gz or .zst."""
    return file.with_suffix("") if file.suffix in COMPRESSED else file


def read_files(benchmark: Benchmark, split: str, data: Path) -> Iterator[Sample]:
    for file in split_files(benchmark, split, data):
        extra = {}
        if benchmark.file_field:
            head, tail = unpacked(Path(benchmark.files[split])).name.split("*")
            extra = {benchmark.file_field: unpacked(file).name.removeprefix(head).removesuffix(tail)}
        rows = read_csv(file, benchmark.columns) if unpacked(file).suffix == ".csv" else read_json(file)
        for where, sample in rows:
            yield where, {**sample, **extra}


def read_json(file: Path) -> Iterator[Sample]:
    """The samples in a file of JSON lines, or in a file with one JSON list of objects, like StrategyQA's."""
    with open_bytes(file) as handle:
        start = handle.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if start != b"[":
        for number, record in read_records(file):
            yield f"{file}, line {number}", record
        return
    try:
        with open_bytes(file) as handle:
            data = handle.read(LIST_BYTES + 1)
        if len(data) > LIST_BYTES:
            raise UserError(f"{file}: a list of at most {LIST_BYTES:,} bytes was expected; save it as JSON lines")
        records = parse_json(data.decode("utf-8-sig"), LIST_VALUES, LIST_PARTS)
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}") from error
    except Flaw as flaw:
        raise UserError(f"{file}: {flaw}") from None
    if not records:
        raise UserError(f"{file}: empty; at least one sample was expected")
    for number, record in enumerate(records, start=1):
        where = f"{file}, sample {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where}: a JSON object was expected, found {shown(record)}")
        yield where, record


def read_csv(file: Path, columns: tuple[str, ...] | None) -> Iterator[Sample]:
    """The samples in a CSV file with a header row, or with the benchmark's `columns`. Equal names give a list."""
    csv.field_size_limit(LINE_BYTES)
    with open_bytes(file) as packed, io.TextIOWrapper(packed, encoding="utf-8-sig", newline="") as handle:
        lines = RowLines(file, handle)
        reader = csv.reader(lines, strict=True)
        try:
            names = columns or tuple(next(reader, ()))
            lines.begin_row()
            counts = Counter(names)
            found = False
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                lines.begin_row()
                if not row:
                    continue
                if len(row) != len(names):
                    raise UserError(f"{where}: a row of {plural(len(names), 'column')} was expected, found {len(row)}")
                sample: Record = {}
                for name, value in zip(names, row):
                    if counts[name] == 1:
                        sample[name] = value
                    else:
                        sample.setdefault(name, []).append(value)
                found = True
                yield where, sample
            if not found:
                raise UserError(f"{file}: empty; at least one row was expected")
        except UnicodeDecodeError as error:
            line = undecodable_line(file)
            raise UserError(f"{file}, line {line}: not valid CSV in UTF-8: {reason(error)}") from error
        except csv.Error as error:
            raise UserError(f"{file}, line {reader.line_num}: not valid CSV in UTF-8: {error}") from error


class RowLines:
    """The lines of a CSV file. The lines of one row may have at most LINE_BYTES characters and ROW_COMMAS commas.

    Args:
        file: the file's path, for messages.
        handle: the open file.
    """

    def __init__(self, file: Path, handle: io.TextIOWrapper):
        self.file, self.handle, self.number = file, handle, 0
        self.begin_row()

    def begin_row(self) -> None:
        self.characters = self.commas = 0

    def __iter__(self) -> "RowLines":
        return self

    def __next__(self) -> str:
        """Raises:
        UserError: the row is too long.
        """
        line = self.handle.readline(LINE_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.characters += len(line)
        self.commas += line.count(",")
        if self.characters > LINE_BYTES or self.commas > ROW_COMMAS:
            raise UserError(
                f"{self.file}, line {self.number}: a row of at most {LINE_BYTES:,} characters and {ROW_COMMAS:,} "
                "commas was expected; is a quote missing?"
            )
        return line


def undecodable_line(file: Path) -> int:
    """The number of the first line that is not UTF-8. The reader does not know it, because it decodes in blocks."""
    with open_bytes(file) as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def read_saved(benchmark: Benchmark, split: str, data: Path) -> Iterator[Sample]:
    """A split in a folder that `DatasetDict.save_to_disk` wrote, with the hub's names of splits and fields."""
    name = benchmark.splits[split]
    needed = f"{benchmark.title} needs {', '.join(dict.fromkeys(benchmark.splits.values()))}"
    saved_files(data)
    if not (data / "dataset_dict.json").is_file():
        raise UserError(f"{data}: a DatasetDict was expected, found one Dataset without splits; {needed}")
    saved = load_saved(data, splits=True)
    if name not in saved:
        raise UserError(f"{data}: no split {name!r}; there are: {', '.join(saved)}")
    columns = saved[name].column_names
    if absent := [field for field in benchmark.fields if field not in columns]:
        raise UserError(
            f"{data}, {name}: the field {absent[0]!r} is missing; {benchmark.title} needs "
            f"{', '.join(benchmark.fields)}; there are: {', '.join(columns)}"
        )
    for number, sample in enumerate(saved[name], start=1):
        yield f"{data}, {name} sample {number}", sample


def read_hub(benchmark: Benchmark, split: str) -> Iterator[Sample]:
    if benchmark.hub is None:
        raise UserError(f"{benchmark.path}: it names no hub dataset; give a local folder (data_prepare.py: --data DIR)")
    source = benchmark.splits[split]
    require_no_namesake(benchmark)
    require_hub_cache()
    try:
        loaded = load_hub(benchmark.hub, benchmark.hub_config, source)
    except Exception as error:  # the hub's client raises a dozen types of errors, and none is a bug of this code
        raise UserError(
            f"{benchmark.title} could not be loaded from the hub ({benchmark.hub}, {source}: {reason(error)}); "
            "check the network and HF_ENDPOINT, or give a local folder with the authors' files (make: "
            f"{benchmark.name.upper()}_DATA=DIR, data_prepare.py: --data DIR)"
        ) from error
    require_plain(loaded.features, f"{benchmark.hub}, {source}")
    for number, sample in enumerate(loaded, start=1):
        yield f"{benchmark.hub}, {source} sample {number}", sample


def require_no_namesake(benchmark: Benchmark) -> None:
    """Refuse to load a dataset from the hub if the current folder has a file or folder with the dataset's name.

    `datasets` would load that instead, and anybody may have put it there.

    Raises:
        UserError: there is such a file or folder.
    """
    if benchmark.hub and os.path.lexists(benchmark.hub):
        raise UserError(
            f"{Path(benchmark.hub).absolute()}: it has the name of a dataset on the hub, and the library would read it "
            f"instead of that dataset; run this from another folder, or give the folder with the data of "
            f"{benchmark.title} (data_prepare.py: --data DIR)"
        )


@functools.cache
def load_hub(hub: str, config: str | None, split: str) -> Any:
    """A split of a dataset on the hub, or of its copy in the cache if the hub cannot be reached.

    One request finds out first whether the hub can be reached. Otherwise `load_dataset` would try for half a minute,
    with a warning at each retry.
    """
    import datasets
    import huggingface_hub

    unreachable = None
    try:
        huggingface_hub.dataset_info(hub, timeout=10)
    except huggingface_hub.errors.HfHubHTTPError:  # the hub answers; load_dataset says what is wrong
        pass
    except Exception as error:
        unreachable = error
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(hub, config, split=split)
    except Exception as error:
        raise unreachable or error from error
