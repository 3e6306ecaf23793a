"""Files and folders that appear whole or not at all, in folders that other people may write to as well.

What a stage writes beside its output (partial files, locks, what is done so far) has a name that somebody else could
have taken for a link of theirs. Such a file is made new, or opened without following a link.
"""

import contextlib
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from teacherlm.core.opening import create
from teacherlm.core.outputs import require_file_place, require_folder_place, require_own_links, through_links
from teacherlm.core.trees import files_below

LEFTOVER_AGE = 24 * 3600
"""Seconds after which what a killed process left beside a file is removed; nothing that is in use is that old."""


def beside(path: Path, kind: str) -> Path:
    """A new hidden neighbour of `path`, on the same file system, where a rename is atomic; no one else's.

    Neighbours of `path` that killed processes left behind are removed on the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        with contextlib.suppress(OSError):  # gone in between, or not ours
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.with_name(f".{path.name}.tmp-{kind}-{secrets.token_hex(8)}")


def make_anew(folder: Path) -> None:
    """Make a folder whose name is fixed, empty; what is there goes, and of a link the link alone.

    Raises:
        OSError: it cannot be made, or something came into its place meanwhile.
    """
    remove(folder)
    folder.mkdir()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, whatever it is, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; it appears under its name only when the block ends well (fsync, rename).

    The file at that path is there already, and empty. A symbolic link stays one: the file that it leads to is replaced.

    Raises:
        UserError: see `require_file_place`.
    """
    require_file_place(path)
    path = through_links(path)
    partial = beside(path, "partial")
    os.close(create(partial))
    try:
        yield partial
        sync_file(partial)
        os.replace(partial, path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """Open `path` for writing text; it appears under its name only when the block ends well (write, fsync, rename)."""
    with whole_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        yield file


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the place of `path` only when the block ends well.

    What stood at `path` is deleted after the new folder is complete. Two renames are needed for that, so for an
    instant neither is there: a reader then finds no folder, never half a one. A symbolic link stays one.

    Raises:
        UserError: see `require_folder_place`.
    """
    require_folder_place(path)
    path = through_links(path)
    partial, old = beside(path, "partial"), beside(path, "old")
    partial.mkdir()
    try:
        yield partial
        for file in files_below(partial):
            sync_file(file)
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(partial, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def set_aside(path: Path) -> Path | None:
    """Rename `path` to `path.old-TIME`, so that nothing is lost; None when there is nothing at `path`.

    Of a symbolic link, what it leads to is renamed.
    """
    target = through_links(path)
    require_own_links(path)
    path = target
    if not path.exists():
        return None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    old = path.with_name(f"{path.name}.old-{stamp}")
    count = 1
    while old.exists():
        count += 1
        old = path.with_name(f"{path.name}.old-{stamp}-{count}")
    os.rename(path, old)
    return old


def sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Some file systems refuse to sync a folder: there it is left to them."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
