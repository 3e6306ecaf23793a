"""A `datasets` folder with its manifest. It appears complete, and never overwrites a user's files."""

from pathlib import Path
from typing import Any

from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_folder
from teacherlm.core.trees import files_below
from teacherlm.dataset.dataset_folder import Stream, has_our_fingerprints, write_dataset


def save(stream: Stream, folder: Path, typed: Stream | None = None) -> int:
    """Save a stream of records as a `datasets` folder, completely or not at all; return the number of records.

    Args:
        typed: records with the same fields and types, if they are made faster than those of the stream.
    """
    with whole_folder(folder) as whole:
        return write_dataset(stream, whole, typed)


def is_theirs(folder: Path) -> bool:
    """Whether the user made the files in `folder`, or changed them after this script had made them."""
    if not folder.is_dir() or next(files_below(folder), None) is None:
        return folder.exists() and not folder.is_dir()
    manifest = manifests.read_manifest(manifests.manifest_of(folder))
    if manifest is not None and is_as_written(folder, manifest["outputs"].get("dataset")):
        return False
    return not has_our_fingerprints(folder)  # this script made it too, but was killed before it wrote the manifest


def is_as_written(folder: Path, output: dict[str, Any] | None) -> bool:
    """Whether every file in a folder is as in the output's description.

    Missing files, and the caches of `datasets` beside a dataset (cache-*.arrow), are not checked.
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
    UserError: the user made the files in `folder`, and they would be overwritten.
    """
    if is_theirs(folder):
        raise UserError(f"{folder}: this script did not make it, and would overwrite it; move it away")
