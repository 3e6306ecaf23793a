"""Unfinished and failed work of a run's folder: in the stages before finetuning, and in its jobs on Slurm."""

import os
from collections.abc import Iterator
from pathlib import Path

from teacherlm.core import manifests
from teacherlm.core.errors import UserError, one_line
from teacherlm.core.job_records import LARGEST, newest_tasks, read_jobs, state_in
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
                if manifests.is_outdated(progress):
                    continue
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
    """The folders of teachers whose texts are in a dataset or in mixed texts of another folder, with those of other
    teachers."""
    found = set()
    enhanced = folder / "enhance"
    for path in [*enhanced.glob(f"*/*/{manifests.NAME}"), *enhanced.glob(f"*/*_*.{manifests.NAME}")]:
        manifest = manifests.read_manifest(path)
        if manifest is not None and manifest["stage"] in ("post_process", "mix"):
            places = [Path(str(described.get("path"))).parent for described in manifest.get("inputs", {}).values()]
            own = path.relative_to(enhanced).parts[0]
            found |= {place.name for place in places if place.parent.name == "enhance"} - {own}
    return found


def count_lines(path: Path) -> int:
    """The number of line breaks in a file, whose lines may have any length."""
    with open_ordinary(path) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def failed_jobs(folder: Path) -> Iterator[str]:
    """Sentences about jobs on Slurm that failed or were cancelled, and whose work was not done since then.

    Jobs that make the page are left out, because there is a page.
    """
    for listed in sorted(folder.glob("chains/*/jobs.tsv")):
        try:
            tasks = newest_tasks(read_jobs(read_bytes(listed, LARGEST), listed))
        except (OSError, ValueError, UserError) as error:
            yield f"chain: {one_line(error)}"
            continue
        for task in tasks:
            note = listed.parent / "states" / task.note
            if task.stage == "report" or not os.path.lexists(note):
                continue
            try:
                said = state_in(read_bytes(note, 1000), task) or ""
            except (OSError, ValueError) as error:
                yield f"chain: {note}: {one_line(error)}"
                continue
            if said.startswith(("failed", "cancelled")):
                was = "was " * said.startswith("cancelled")
                yield f"{task.stage}: task {task.number} of {listed.parent.name} {was}{said}"


def read_bytes(file: Path, most: int) -> bytes:
    """The first bytes of an ordinary file."""
    with open_ordinary(file) as opened:
        return opened.read(most)
