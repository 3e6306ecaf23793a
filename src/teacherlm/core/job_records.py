"""What a chain's folder says about its jobs on Slurm: the list of jobs (jobs.tsv) and the state of each task (states/).

The chain and slurm/job.sh write these files; the chain's commands and the report read them.

jobs.tsv has one row per stage of each submission, the newest last: stage, job, tasks, waits for, the work's name, log.
A row with the job `-` says that these tasks were found done, by a submission or by a run on this machine. Only the
newest submission of a stage counts: an older one may have had other tasks (another SHARDS), and may have failed before
another run did its work.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.terminal import shown

STAGES = ("prepare", "enhance", "merge", "finetune", "train", "evaluate", "score", "report")
"""The stages of all chains, in their order."""
DONE = "-"
"""The job of tasks that were found done."""
FOUND_DONE = "done already"
"""What is said of them."""
LARGEST = 2**22
"""Maximum number of bytes of a jobs.tsv."""
RANGES = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")
COLUMNS = {
    "stage": re.compile(f"({'|'.join(STAGES)})(-[a-z0-9_]+){{0,2}}"),
    "job": re.compile("-|[0-9]{1,18}"),
    "tasks": RANGES,
    "waits for": re.compile("-|[0-9 ]+"),
    "work": re.compile(r"[^/\0]+"),
    "log": re.compile(r".*/[a-z]+(-[a-z0-9_]+){0,2}(-%a)?[.]log"),
}
"""Column of a jobs.tsv -> the pattern of its cells."""


@dataclass(frozen=True)
class Job:
    """A row of jobs.tsv."""

    stage: str
    number: str
    tasks: str
    waits: str
    work: str
    log: str

    def row(self) -> str:
        return "\t".join((self.stage, self.number, self.tasks, self.waits, self.work, self.log))


@dataclass(frozen=True)
class Task:
    """One task of a stage, from the newest submission of the stage. `log` is the name of its file in logs/."""

    stage: str
    job: str
    number: int
    work: str
    log: str

    @property
    def note(self) -> str:
        """The name of the file in states/ with its state."""
        return f"{self.stage}-{self.number}"


def read_jobs(content: bytes, file: Path) -> list[Job]:
    """The rows of a jobs.tsv.

    Args:
        file: its path, for messages.

    Raises:
        UserError: a row is malformed.
    """
    rows = []
    for line, row in enumerate(content.decode("utf-8", "surrogateescape").split("\n")[:-1], 1):
        cells = row.split("\t")
        if len(cells) != len(COLUMNS):
            raise UserError(f"{file}, line {line}: {len(COLUMNS)} columns were expected, found {len(cells)}")
        for (name, pattern), cell in zip(COLUMNS.items(), cells):
            if not pattern.fullmatch(cell):
                raise UserError(f"{file}, line {line}: {shown(cell)} is not valid in the column {name!r}")
        rows.append(Job(*cells))
    return rows


def newest_tasks(rows: Iterable[Job]) -> list[Task]:
    """The tasks of each stage's newest submission, in the order of the stages.

    A submission of some tasks of an array has a row before it with the other tasks, which were found done.
    """
    found: dict[str, dict[int, Task]] = {}
    before = None
    for row in rows:
        if before is None or (before.stage, before.number) != (row.stage, DONE):
            found[row.stage] = {}
        for number in numbers(row.tasks):
            log = Path(row.log).name.replace("%a", str(number))
            found[row.stage][number] = Task(row.stage, row.number, number, row.work, log)
        before = row
    tasks = (task for of_stage in found.values() for task in of_stage.values())
    return sorted(tasks, key=lambda task: (STAGES.index(kind_of(task.stage)), task.number))


def kind_of(stage: str) -> str:
    """The stage's name without the kind of explanation: enhance-cot is one of several stages that enhance."""
    return stage.partition("-")[0]


def state_in(note: bytes, task: Task) -> str | None:
    """The state in a task's note, or None if the note is of another job, or is malformed."""
    said, _, rest = note.decode("utf-8", "replace").partition("\t")
    return said if rest.split("\t")[0] == task.job else None


def numbers(ranges: str) -> list[int]:
    """0-2,5 -> 0 1 2 5."""
    found: list[int] = []
    for part in ranges.split(",")[:10_000]:  # Slurm's arrays are far smaller
        first, _, last = part.partition("-")
        found += range(int(first), min(int(last or first), int(first) + 10_000) + 1)
    return found[:10_000]


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in sbatch's format: 0 1 2 5 -> 0-2,5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, part)) for part in found)
