"""The shards of an evaluation: their locks, and their progress files. Only one process at a time scores a shard."""

import glob
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from teacherlm.core.interrupts import REQUEUE, Stop
from teacherlm.core.lock import if_free
from teacherlm.core.progress_file import ProgressFile, peek

Answer = Any
"""The answer to a request: [sum, whether greedy] for a log-likelihood, the text for a generation, and the sum for a
rolling log-likelihood."""


def batches(count: int) -> str:
    """A number of batches in words."""
    return f"{count} batch" if count == 1 else f"{count} batches"


class Shard:
    """The parts of the work that belong to this process, and the answers so far.

    Args:
        progress: the file with the answers of finished parts; None means that answers are not kept on disk.
        index, count: this process has number `index`, from 0, of `count` processes.
        others: the parts that other processes have finished.
        stop: tells whether a signal asks to end with exit code REQUEUE after the current part.
    """

    def __init__(
        self,
        progress: ProgressFile | None = None,
        index: int = 0,
        count: int = 1,
        others: Mapping[int, dict[str, Any]] | None = None,
        stop: Stop | None = None,
    ):
        self.progress, self.index, self.count = progress, index, count
        self.others, self.stop = others or {}, stop
        self.first = 0
        self.missing: set[int] = set()

    def do(self, parts: int, compute: Callable[[int], list[Answer]]) -> list[list[Answer] | None]:
        """The answers of each part, kept or computed now; None for a part that another process has to compute."""
        keys = range(self.first, self.first + parts)
        self.first += parts
        answers: list[list[Answer] | None] = []
        for part, key in enumerate(tqdm(keys, disable=not sys.stderr.isatty() or parts < 2)):
            if self.progress is not None and key in self.progress:
                answers.append(self.progress.read(key)["answers"])
            elif key in self.others:
                answers.append(self.others[key]["answers"])
            elif part * self.count // parts == self.index:
                answers.append(compute(part))
                if self.progress is not None:
                    self.progress.append(key, {"answers": answers[-1]})
                if self.stop is not None and self.stop.requested:
                    print(f"evaluate: interrupted after {batches(len(self.progress))}; the same command continues")
                    sys.exit(REQUEUE)
            else:
                answers.append(None)
                self.missing.add(key)
        return answers


def score_shard(
    model: Any, tasks: dict[str, Any], limit: int | None, path: Path, shard: tuple[int, int], work: dict[str, Any]
) -> tuple[tuple[list[dict[str, Any]], list[dict[str, Any]]], int]:
    """Score this process's shard of the work. Each batch is written to disk as soon as it ends.

    The process that ends last finds the batches of all processes.

    Returns:
        The results and sample records, and the number of batches that are still missing in them.
    """
    from teacherlm.scoring.evaluator import score

    index, count = shard
    file = progress_file(path, index, count)
    progress = ProgressFile(file, work, restart=True)
    if len(progress):
        print(f"evaluate: an earlier run scored {batches(len(progress))}; continuing with the others")
    others = read_others(path, file, work)
    stop = Stop()
    try:
        while True:
            mine = Shard(progress, index, count, others, stop)
            model.begin(mine)
            scored = score(model, tasks, limit)
            others = read_others(path, file, work)  # batches that they have finished in the meantime
            if not mine.missing or not mine.missing <= set(others):
                return scored, len(mine.missing)
    finally:
        progress.close()
        stop.restore()


def read_others(path: Path, mine: Path, work: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The batches that other processes have finished so far, by their numbers."""
    others: dict[int, dict[str, Any]] = {}
    for file in progress_files(path):
        others |= peek(file, work) if file != mine else {}
    return others


def progress_file(path: Path, index: int, count: int) -> Path:
    return path.with_name(f".{path.stem}.shard-{index}-of-{count}.progress")


def progress_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f".{glob.escape(path.stem)}.shard-*-of-*.progress"))


def shard_lock(path: Path, index: int, count: int) -> Path:
    """The file that a process locks to score a shard. If there is only one shard, it is the result itself."""
    return path if count == 1 else path.with_name(f"{path.stem}.shard-{index}-of-{count}")


def remove_progress(path: Path) -> None:
    """Remove the progress files of a finished result, except those to which a running process still appends."""
    for file in progress_files(path):
        index, count = re.fullmatch(r".*\.shard-(\d+)-of-(\d+)\.progress", file.name).groups()
        with if_free(shard_lock(path, int(index), int(count))) as free:
            if free:
                file.unlink(missing_ok=True)
