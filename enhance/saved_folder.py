"""A `datasets` folder with its manifest: written whole, never over what a user put there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset_folder import Stream, write_dataset

from teacherlm import manifests
from teacherlm.files import set_aside, whole_folder


def save(stream: Stream, folder: Path) -> int:
    """Save a stream of records as a `datasets` folder, whole or not at all; returns how many there were."""
    with saving(stream, folder) as count:
        return count


@contextlib.contextmanager
def saving(stream: Stream, folder: Path) -> Iterator[int]:
    """Like `save`, but the folder takes its place only when the block ends well."""
    with whole_folder(folder) as whole:
        yield write_dataset(stream, whole)


def keep_foreign(folder: Path) -> None:
    """Set aside a folder that this script did not write (no manifest): the user's own data is never overwritten."""
    old = set_aside(folder)
    if old is not None:
        print(f"{folder} was there without a manifest: kept as {old}")


def finish(
    saved: Path,
    stage: str,
    inputs: dict[str, Any],
    counts: dict[str, Any],
    started: float,
    arguments: dict[str, Any] | None = None,
) -> None:
    manifests.write_manifest(
        manifests.manifest_of(saved),
        stage=stage,
        arguments=arguments or {},
        inputs=inputs,
        outputs={"dataset": manifests.describe(saved)},
        counts=counts,
        started=started,
    )
