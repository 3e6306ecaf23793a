"""A `datasets` folder with its manifest: written whole, never over what a user put there."""

from pathlib import Path
from typing import Any

from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_folder
from teacherlm.core.trees import files_below
from teacherlm.dataset.dataset_folder import Stream, has_our_fingerprints, write_dataset


def save(stream: Stream, folder: Path) -> int:
    """Save a stream of records as a `datasets` folder, whole or not at all; returns how many there were."""
    with whole_folder(folder) as whole:
        return write_dataset(stream, whole)


def is_theirs(folder: Path) -> bool:
    """Whether a person made what is in `folder`, or changed it after this script had made it."""
    if not folder.is_dir() or next(files_below(folder), None) is None:
        return folder.exists() and not folder.is_dir()
    manifest = manifests.read_manifest(manifests.manifest_of(folder))
    if manifest is not None and is_as_written(folder, manifest["outputs"].get("dataset")):
        return False
    return not has_our_fingerprints(folder)  # ours too, but a kill came before the manifest


def is_as_written(folder: Path, output: dict[str, Any] | None) -> bool:
    """Whether every file in a folder is one that its output was described with; missing files do not count.

    What `datasets` caches beside a dataset (cache-*.arrow) does not count either.
    """
    found = manifests.describe(folder, output)["files"]
    known = (output or {}).get("files", {})
    return all(
        name in known and file["sha256"] == known[name]["sha256"]
        for name, file in found.items()
        if not Path(name).name.startswith("cache-")
    )


def refuse_theirs(folder: Path) -> None:
    """Raises:
    UserError: what is in `folder` is the user's own, and would be overwritten.
    """
    if is_theirs(folder):
        raise UserError(f"{folder}: it is there, and this script did not make it; move it away")
