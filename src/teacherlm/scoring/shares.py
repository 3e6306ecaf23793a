"""The shares of an evaluation. Each is done by one process at a time: their locks, and what they keep on disk."""

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
"""Of a log-likelihood: [sum, whether greedy]; of a generation: the text; of a rolling log-likelihood: the sum."""


class Share:
    """Which parts of the work are this process's, and the answers so far.

    Args:
        progress: where the answers of finished parts are; None: nowhere, all parts are done here.
        index, count: this process is the one numbered `index` of `count`.
        others: parts that other processes have finished.
        stop: whether to end with exit code REQUEUE after the part at work.
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
        """The answers of each part: those that are there, those computed here, None for other processes'."""
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
                if self.stop is not None and self.stop.asked:
                    print(f"evaluate: interrupted after {len(self.progress)} batches; the same command goes on")
                    sys.exit(REQUEUE)
            else:
                answers.append(None)
                self.missing.add(key)
        return answers


def score_share(
    model: Any, tasks: dict[str, Any], limit: int | None, path: Path, shard: tuple[int, int], work: dict[str, Any]
) -> tuple[tuple[list[dict[str, Any]], list[dict[str, Any]]], int]:
    """Do this process's share of the work, each batch on disk as it ends; all results, and how many batches they lack.

    Of several processes the one that ends last finds the shares of all.
    """
    from teacherlm.scoring.evaluator import score

    index, count = shard
    own = progress_file(path, index, count)
    progress = ProgressFile(own, work, restart=True)
    if len(progress):
        print(f"evaluate: {len(progress)} batches were done before, going on")
    others = read_others(path, own, work)
    stop = Stop()
    try:
        while True:
            share = Share(progress, index, count, others, stop)
            model.begin(share)
            scored = score(model, tasks, limit)
            others = read_others(path, own, work)  # what they did in the meantime
            if not share.missing or not share.missing <= set(others):
                return scored, len(share.missing)
    finally:
        progress.close()
        stop.restore()


def read_others(path: Path, own: Path, work: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What other processes have done so far, by the number of the batch."""
    others: dict[int, dict[str, Any]] = {}
    for file in progress_files(path):
        others |= peek(file, work) if file != own else {}
    return others


def progress_file(path: Path, index: int, count: int) -> Path:
    return path.with_name(f".{path.stem}.share-{index}-of-{count}.progress")


def progress_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f".{glob.escape(path.stem)}.share-*-of-*.progress"))


def share_lock(path: Path, index: int, count: int) -> Path:
    """What a process that does a share locks: the only share is the result itself."""
    return path if count == 1 else path.with_name(f"{path.stem}.share-{index}-of-{count}")


def remove_progress(path: Path) -> None:
    """Remove what processes have kept of a result that is written; not what a running process still appends to."""
    for file in progress_files(path):
        index, count = re.fullmatch(r".*\.share-(\d+)-of-(\d+)\.progress", file.name).groups()
        with if_free(share_lock(path, int(index), int(count))) as free:
            if free:
                file.unlink(missing_ok=True)
