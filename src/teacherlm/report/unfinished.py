"""Unfinished and failed work of a run's folder: in the stages before finetuning, and in its jobs on Slurm."""

from collections.abc import Iterator
from pathlib import Path

from teacherlm.core import manifests
from teacherlm.core.errors import UserError, one_line
from teacherlm.core.opening import open_ordinary
from teacherlm.core.records import read_records


def unprepared(folder: Path) -> Iterator[str]:
    if not list(folder.glob(f"prepare*/*{manifests.NAME}")):
        yield "prepare: not done: there are no prompts and no test set yet"


def unexplained(folder: Path) -> Iterator[str]:
    """Sentences about missing texts of teachers, and about missing post-processing."""
    joined = teachers_of_others(folder)
    for teacher in sorted(path for path in (folder / "enhance").glob("*") if path.is_dir()):
        for progress in sorted(teacher.glob(".*.progress")):
            try:
                texts = max(0, count_lines(progress) - 1)
            except (OSError, ValueError) as error:
                yield f"enhance: {progress}: {one_line(error)}"
                continue
            output = progress.name.removeprefix(".").removesuffix(".progress")
            yield f"enhance: {teacher.name}/{output} is not finished: {texts} texts so far"
        for failures in sorted(teacher.glob("*.failures.jsonl")):
            try:
                listed = read_records(failures)
                _, first = next(listed)
                count = 1 + sum(1 for _ in listed)
            except UserError as error:
                yield f"enhance: {one_line(error)}"
                continue
            yield (
                f"enhance: {count} records have no text in {teacher.name}/{failures.name.split('.')[0]}.jsonl; "
                f"the first is that of line {first.get('line')}: {first.get('reason')}"
            )
        done = [path for path in teacher.glob(f"*_*.{manifests.NAME}") if "shard-" not in path.name]
        if teacher.name in joined:
            continue
        if done and not list(teacher.glob(f"*/{manifests.NAME}")):
            yield f"post-process: not done for {teacher.name}: there is no dataset to finetune on"
        elif done and not list(teacher.glob(f"*_quality.{manifests.NAME}")):
            yield f"quality: not measured for {teacher.name}; data_prepare.py --post_process does it"


def teachers_of_others(folder: Path) -> set[str]:
    """The folders of teachers whose texts are in a dataset of another folder, with those of other teachers."""
    found = set()
    for path in (folder / "enhance").glob(f"*/*/{manifests.NAME}"):
        manifest = manifests.read_manifest(path)
        if manifest is not None and manifest["stage"] == "post_process":
            places = [Path(str(described.get("path"))).parent for described in manifest.get("inputs", {}).values()]
            found |= {place.name for place in places if place.parent.name == "enhance"} - {path.parent.parent.name}
    return found


def count_lines(path: Path) -> int:
    """The number of line breaks in a file, whose lines may have any length."""
    with open_ordinary(path) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def failed_jobs(folder: Path) -> Iterator[str]:
    """Sentences about failed jobs on Slurm, from the states that slurm/job.sh writes."""
    for state in sorted(folder.glob("chains/*/states/*")):
        try:
            with open_ordinary(state) as file:
                said = file.read(1000).decode("utf-8", "replace").split("\t")[0]
        except (OSError, ValueError) as error:
            yield f"chain: {state}: {one_line(error)}"
            continue
        if said.startswith("failed") and not state.suffix:
            stage, _, number = state.name.rpartition("-")
            yield f"{stage}: task {number} of {state.parent.parent.name} {said}"
