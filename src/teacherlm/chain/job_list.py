"""The list of a chain's jobs, jobs.tsv: its rows, and which of its jobs are still in Slurm's queue."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


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


def under_way(queue: set[str], lists: Iterable[Path], work: str | None) -> list[str]:
    """The jobs in these lists that are in the queue. If `work` is not None, only the jobs of that work."""
    found = set()
    for file in lists:
        with contextlib.suppress(OSError):
            for line in file.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
                cells = line.split("\t")
                if len(cells) >= 5 and cells[1] in queue and work in (None, cells[4]):
                    found.add(cells[1])
    return sorted(found)


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in sbatch's format: 0 1 2 5 -> 0-2,5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ",".join("-".join(map(str, part)) for part in found)


def columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
