"""What the names that `teacherlm compare` is given stand for."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.report.atlas_results import is_atlas_folder
from teacherlm.report.run_folder import RunFolder, is_run_folder, read_run_folder
from teacherlm.report.scored import Scored, read_results

SEED = re.compile(r"_seed\d+")


def find(runs: Path, name: str) -> list[RunFolder]:
    """The folders of runs that a name stands for. For the name of a finetuning, they contain only that finetuning.

    Raises:
        UserError: the name does not stand for a run.
    """
    for folder in (Path(name), runs / name):
        if is_run_folder(folder):
            return [read_run_folder(folder)]
        if folder.is_dir() and is_atlas_folder(folder):
            return [RunFolder(folder, [], [], [], [])]
        if below := [inner for inner in sorted(folder.glob("*")) if is_run_folder(inner)]:
            return [read_run_folder(inner) for inner in below]
        if files := result_files(folder):
            return [results_in(folder, files)]
    folders = [folder for folder in sorted(runs.glob("*/*")) if is_run_folder(folder)]
    holding = [(folder, one) for folder in folders for one in finetunings(folder, name)]
    if not holding:
        raise UserError(f"{name}: no such run under {runs}; give a run's folder (creak/all) or a finetuning's name")
    return [only(read_run_folder(folder), one) for folder, one in holding]


def finetunings(folder: Path, name: str) -> Iterator[str]:
    """The names of a folder's finetunings and models that a name stands for: itself, or NAME_seed0, NAME_seed1, ..."""
    known = {path.name for part in ("finetune", "evaluate") for path in (folder / part).glob("*") if path.is_dir()}
    if name in known:
        yield name
        return
    yield from sorted(one for one in known if one.startswith(name) and SEED.fullmatch(one[len(name) :]))


def result_files(place: Path) -> list[Path]:
    """The results that `teacherlm evaluate` wrote into a folder of a model, or the one that a path is."""
    files = [place] if place.is_file() else sorted(place.glob("*.json"))
    return [file for file in files if file.suffix == ".json" and not file.name.endswith(manifests.NAME)]


def results_in(place: Path, files: list[Path]) -> RunFolder:
    """Results outside of a run's folder.

    Raises:
        UserError: a file is not a result.
    """
    missing: list[str] = []
    found = [replace(one, name=one.name.removesuffix(" (untrained)")) for one in read_results(files, missing)]
    if missing:
        raise UserError(missing[0])
    return RunFolder(place, [], found, [], missing)


def only(found: RunFolder, name: str) -> RunFolder:
    """The folder of a run, with only one of its finetunings or untrained models."""
    runs = [one for one in found.runs if one.name == name]
    kept = [scored for one in runs for scored in one.scored if not scored.step]
    kept = kept or [scored for scored in found.untrained if scored.path.parent.name == name]
    missing = [said for said in found.missing if name in said]
    for one in runs:
        one.scored = [replace(scored, missing=missing) for scored in one.scored]
    kept = [replace(scored, missing=missing) for scored in kept]
    return RunFolder(found.folder, runs, kept, found.manifests, missing)


def last_results(found: RunFolder) -> list[Scored]:
    """The results of a folder's untrained models, and of the last checkpoint of each finetuning on each task."""
    last = {(number, one.task): one for number, run in enumerate(found.runs) for one in run.checkpoints}
    return [*found.untrained, *last.values()]
