"""Digests of large files, kept in the user's cache. A file with unchanged size and times is not read again."""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.json_files import load_object
from teacherlm.core.places import cache_folder

SETTLED = 2 * 10**9
"""A digest is kept only if the file has not changed for this many nanoseconds. File systems store times with a limited
resolution, so a second change shortly after the first may leave the same time."""
LARGE = 10**9
"""If more bytes than this have to be read, a line on stderr says so."""

Item = TypeVar("Item")


def describe(path: Path, files: Sequence[Path] | None = None) -> dict[str, Any]:
    """The digest of a file, or of some files in a folder, in the form of `manifests.describe`.

    Args:
        path: the file or the folder.
        files: the files in the folder to include; None means that `path` is the file.

    Raises:
        UserError: a file is missing.
    """
    files = [path] if files is None else list(files)
    store = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]}.json"
    stored = read_store(store)
    before = {name_in(path, file): stamp(file) for file in files}
    known = {name: stored[name] for name, found in before.items() if same(stored.get(name), found)}
    unread = sum(found["bytes"] for name, found in before.items() if name not in known)
    if unread > LARGE:
        print(f"{path}: reading {unread / 1e9:.1f} GB for a digest, which is then kept", file=sys.stderr, flush=True)
    described, kept = {}, {}
    for file in files:
        name = name_in(path, file)
        digest = known[name]["sha256"] if name in known else manifests.sha256(file)
        after = stamp(file)
        if before[name] == after and time.time_ns() - max(after["mtime_ns"], after["ctime_ns"]) > SETTLED:
            kept[name] = {**after, "sha256": digest}
        described[name] = {"bytes": after["bytes"], "mtime_ns": after["mtime_ns"], "sha256": digest}
    if kept != stored:
        with contextlib.suppress(OSError), whole_file(store) as handle:  # without the store, files are read again
            json.dump(kept, handle)
    return manifests.combined(path, described)


def record_of(file: Path) -> Path:
    """The file with the digest of a downloaded file."""
    return file.with_name(f".{file.name}.download.json")


def noted_digest(file: Path) -> str | None:
    """The digest that a file had when it was downloaded; None if it was not downloaded by this program."""
    try:
        return load_object(record_of(file))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def while_unchanged(
    path: Path, files: Sequence[Path] | None, described: dict[str, Any], items: Iterator[Item]
) -> Iterator[Item]:
    """Yield items that are read from described files, and raise a UserError at the end if the files have changed."""
    yield from items
    require_unchanged(path, files, described)


def require_unchanged(path: Path, files: Sequence[Path] | None, described: dict[str, Any]) -> None:
    """Raise a UserError if the files have changed since they were described."""
    if describe(path, files)["sha256"] != described["sha256"]:
        raise UserError(f"{path}: changed while it was read; run the same command again when it is complete")


def name_in(path: Path, file: Path) -> str:
    return file.name if file == path else str(file.relative_to(path))


def stamp(file: Path) -> dict[str, int]:
    """The size and times of a file. Unlike mtime, which `cp -p` sets, ctime cannot be set back."""
    try:
        found = file.stat()
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file") from error
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}


def same(entry: Any, found: dict[str, int]) -> bool:
    """Whether an entry of the store has this stamp and a digest."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        return False
    return all(entry.get(key) == value for key, value in found.items())


def read_store(store: Path) -> dict[str, dict[str, Any]]:
    try:
        stored = load_object(store)
    except (OSError, ValueError):
        return {}
    return {name: entry for name, entry in stored.items() if isinstance(entry, dict)}
