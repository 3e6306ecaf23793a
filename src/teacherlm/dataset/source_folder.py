"""The source of a benchmark's samples in this call, and the copy of a user's dataset.

The reference's users put the source at ./CREAK with `save_to_disk`, and the prepared dataset is written to ./CREAK as
well. The user's dataset is therefore copied to CREAK.source before it is replaced, and later calls read the copy.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from teacherlm.catalog.benchmarks import Benchmark
from teacherlm.catalog.prompt_sets import PromptSet
from teacherlm.catalog.sources import source_files
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import set_aside, whole_folder
from teacherlm.core.saved_datasets import is_saved, saved_files
from teacherlm.core.stage_run import StageRun
from teacherlm.dataset.saved_folder import is_theirs

KEPT = ".source"
"""The ending of the name of the folder with the copy of the user's dataset."""


def kept_folder(benchmark: Benchmark, folder: Path) -> Path:
    return folder / f"{benchmark.title}{KEPT}"


def find_source(benchmark: Benchmark, data: Path | None, folder: Path) -> Path | None:
    """The folder to read the samples from. None means the benchmark's `local` folder, or the hub if it has none.

    It is the first of these that exists: `data`, a user's dataset at TITLE/, the source of TITLE.jsonl, the copy
    TITLE.source.

    Args:
        data: the folder that the user gave, if any. TITLE/ has the same meaning as None.
        folder: the output folder.

    Raises:
        UserError: `data` is missing, or TITLE/ has files of the user that would be overwritten.
    """
    saved, kept = folder / benchmark.title, kept_folder(benchmark, folder)
    theirs = is_theirs(saved)
    if data is not None and data.resolve() != saved.resolve():
        if not data.is_dir():
            raise UserError(f"{data}: no such folder; the data of {benchmark.title} was expected there")
        if theirs:
            raise UserError(
                f"{saved}: this script did not make it, and the prepared dataset would overwrite it; omit --data to "
                "prepare from it, or move it away, or give another --output_dir"
            )
        return data
    if theirs:
        if not is_saved(saved):
            raise UserError(
                f"{saved}: this script did not make it, nor did save_to_disk, and the prepared dataset would overwrite "
                "it; move it away, or give another --output_dir"
            )
        return saved
    remembered = earlier_source(benchmark, folder)
    if remembered is not None and remembered.is_dir():
        return remembered
    if kept.is_dir():
        return kept
    if data is not None and not saved.exists():
        raise UserError(f"{data}: no such folder; the data of {benchmark.title} was expected there")
    return remembered if benchmark.local is None else None


def earlier_source(benchmark: Benchmark, folder: Path) -> Path | None:
    """The local folder from which TITLE.jsonl was prepared, even if it no longer exists."""
    manifest = manifests.read_manifest(manifests.manifest_of(folder / f"{benchmark.title}.jsonl"))
    path = Path((manifest or {}).get("inputs", {}).get("source", {}).get("path", ""))
    return path if path.is_absolute() else None


def describe_source(
    benchmark: Benchmark,
    prompts: PromptSet,
    source: Path | None,
    folder: Path,
    known: Mapping[str, manifests.Description],
    splits: Iterable[str] | None = None,
) -> dict[str, Any]:
    """The digests of the inputs of the prepared files: YAML, prompts, and the source's files or the hub's name.

    A source that was read before and no longer exists keeps its earlier description.

    Args:
        known: earlier descriptions. Files that are unchanged since then are not read again.
        splits: the splits that are read, if not all are.
    """
    earlier = known.get("source", {})
    if source is not None and not source.exists() and earlier.get("path") == str(source):
        described = earlier
    elif files := source_files(benchmark, source, splits):
        root = benchmark.path.parent / str(benchmark.local) if source is None else source
        described = manifests.describe(root, earlier, files)
        place = kept_folder(benchmark, folder) if root == folder / benchmark.title else root
        described["path"] = str(place.absolute())
    else:
        described = {"path": f"hub: {benchmark.hub}", "sha256": f"{benchmark.hub} {benchmark.hub_config or ''}".strip()}
    yaml = manifests.describe(benchmark.path, known.get("benchmark"))
    return {"benchmark": yaml, "source": described, "prompts": prompts.digest(benchmark.is_open)}


def source_in_words(described: dict[str, Any]) -> str:
    path = Path(described["path"])
    return str(described["path"]) + (", which no longer exists" if path.is_absolute() and not path.is_dir() else "")


def keep_source(benchmark: Benchmark, folder: Path) -> Path:
    """Copy the user's dataset from TITLE/ to TITLE.source, unless the same copy exists already; return the copy.

    An earlier copy with other content is renamed to TITLE.source.old-TIME.

    Raises:
        UserError: TITLE.source exists, and this script did not make it.
    """
    saved, kept = folder / benchmark.title, kept_folder(benchmark, folder)
    files = saved_files(saved)
    run = StageRun("keep", kept)
    run.compare({}, {"dataset": manifests.describe(saved, files=files)})
    if kept.exists():
        if run.manifest is None or run.manifest["stage"] != "keep":
            raise UserError(f"{kept}: this script did not make it, and a copy of {saved} would go there; move it away")
        if run.is_done:
            return kept
        print(f"prepare: the earlier copy {kept} is kept as {set_aside(kept)}")
    with whole_folder(kept) as whole:
        for file in files:
            copy = whole / file.relative_to(saved)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
        run.finish({"dataset": whole}, {}, within=whole)
    if saved.is_symlink():  # its target is not changed
        saved.unlink()
    print(f"prepare: {saved} is your dataset: {kept} is a copy of it, and the prepared dataset replaces {saved}")
    return kept
