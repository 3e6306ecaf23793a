"""The shares of an evaluation. Each is done by one process at a time: their locks, and what they keep on disk."""

import glob
import re
from pathlib import Path
from typing import Any

from share import Share

from teacherlm.interrupts import Stop
from teacherlm.lock import if_free
from teacherlm.progress_file import ProgressFile, peek


def score_share(
    model: Any, tasks: dict[str, Any], limit: int | None, path: Path, shard: tuple[int, int], work: dict[str, Any]
) -> tuple[tuple[list[dict[str, Any]], list[dict[str, Any]]], int]:
    """Do this process's share of the work, each batch on disk as it ends; all results, and how many batches they lack.

    Of several processes the one that ends last finds the shares of all.
    """
    from scoring import score

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
