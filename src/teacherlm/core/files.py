"""Files and folders that appear complete or not at all, in folders that other people may write to as well.

A stage writes files beside its output: partial files, locks, progress files. Another user could have put a link there
under the same name. Such a file is therefore newly created, or opened without following links.
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
"""Seconds after which a partial file of a killed process is removed. No file that is in use is that old."""


def beside(path: Path, kind: str) -> Path:
    """A new, unique, hidden name in the folder of `path`: a rename from it to `path` is atomic.

    Old files of this kind, which killed processes left behind, are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        with contextlib.suppress(OSError):  # another process has removed it, or it belongs to another user
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.with_name(f".{path.name}.tmp-{kind}-{secrets.token_hex(8)}")


def make_anew(folder: Path) -> None:
    """Make an empty folder. Whatever has that name is removed first; of a link, only the link itself.

    Raises:
        OSError: the folder cannot be made, or something with that name appeared after the removal.
    """
    remove(folder)
    folder.mkdir()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to. It is renamed to `path` after fsync, and only if the block raises no error.

    An empty file exists at that path. If `path` is a symbolic link, it stays one, and its target is replaced.

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
    """Open a text file for writing. It appears at `path` after fsync, and only if the block raises no error."""
    with whole_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as file:
        yield file


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill. It replaces `path` only if the block raises no error.

    The old folder is deleted after the new one is complete. The replacement takes two renames, so for an instant a
    reader finds no folder; it never finds a partial one. If `path` is a symbolic link, it stays one.

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
    """Rename `path` to `path.old-TIME` and return the new path, so that nothing is lost; None if `path` is missing.

    If `path` is a symbolic link, its target is renamed.
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
    """Make a rename in `folder` durable. Errors are ignored, because some file systems cannot sync a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
