"""The list of a chain's jobs, jobs.tsv (core/job_records.py): which of them are in Slurm's queue, and what is done."""

import contextlib
from collections.abc import Iterable, Sequence

from teacherlm.chain.layout import ChainFolder
from teacherlm.core.errors import UserError
from teacherlm.core.job_records import DONE, FOUND_DONE, LARGEST, Job, Task, newest_tasks, ranges, read_jobs, state_in
from teacherlm.core.owners import read_own


def under_way(queue: set[str], chains: Iterable[ChainFolder], work: str | None) -> list[str]:
    """The jobs of these chains that are in the queue. If `work` is not None, only the jobs of that work."""
    found = set()
    for chain in chains:
        with contextlib.suppress(OSError):
            for line in chain.jobs.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
                cells = line.split("\t")
                if len(cells) >= 5 and cells[1] in queue and work in (None, cells[4]):
                    found.add(cells[1])
    return sorted(found)


def listed_jobs(chain: ChainFolder) -> list[Job]:
    """The rows of a chain's list.

    Raises:
        UserError: the list is malformed, or belongs to another user.
    """
    return read_jobs(read_own(chain.jobs, LARGEST), chain.jobs)


def read_state(chain: ChainFolder, task: Task) -> str | None:
    """The state that a task's job has written, or None if it has written none."""
    if task.job == DONE:
        return FOUND_DONE
    note = chain.states / task.note
    if not note.is_file():
        return None
    try:
        return state_in(read_own(note, 4096), task)
    except UserError:
        return None


def done_row(chain: ChainFolder, stage: str, indices: Sequence[int], work: str, array: bool) -> Job:
    """The row that says that these tasks were found done."""
    return Job(stage, DONE, ranges(indices), "-", work, chain.log(stage, array))


def says_done(chain: ChainFolder, stage: str) -> bool:
    """Whether the list and the states say that a stage is done. A list that cannot be read says nothing."""
    try:
        tasks = [task for task in newest_tasks(listed_jobs(chain)) if task.stage == stage]
    except UserError:
        return False
    return bool(tasks) and all((read_state(chain, task) or "").startswith("done") for task in tasks)


def append(chain: ChainFolder, row: Job) -> None:
    """Add a row to a chain's list.

    Raises:
        UserError: the list cannot be written.
    """
    try:
        with open(chain.jobs, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(row.row() + "\n")
    except OSError:
        raise UserError(f"{chain.jobs}: cannot be written; is the disk full?") from None


def columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
