"""Files and folders that appear whole or not at all."""

import contextlib
import glob
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import quote

from teacherlm.errors import UserError, shown


def cache_folder() -> Path:
    """Where this project keeps what is costly to make again: TEACHERLM_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teacherlm"
    return Path(os.environ.get("TEACHERLM_CACHE") or default)


LONGEST_NAME = 200
"""Bytes of a name that comes from data; file systems take 255, and ours get endings."""


def plain_name(name: str, where: str) -> str:
    """A name that was read from data, once it is sure that as a part of a path it is one name in a folder.

    Args:
        where: the name's place, for messages: a file and a field.

    Raises:
        UserError: it is empty, too long, hidden or a folder's own (`.`, `..`), or has a slash or a character that
            cannot be printed.
    """
    if not name or name.startswith(".") or "/" in name or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise UserError(
            f"{where}: a plain name was expected, without slashes, without a dot at its beginning and of at most "
            f"{LONGEST_NAME} bytes, found {shown(name)}; it becomes the name of a file"
        )
    return name


def file_name(name: str) -> str:
    """Any name, of a task for example, as that of a file: `math/algebra` is `math%2Falgebra`.

    Two names never become the same one, and none leads to another folder or is that of a hidden file or a manifest.
    """
    return re.sub(
        r"[^\w .,()+=@~-]|^\.|\.(?=manifest$)",
        lambda mark: quote(mark[0], safe="", errors="surrogatepass").replace(".", "%2E"),
        name,
    )


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
    return path.with_name(f".{path.name}.tmp-{kind}-{uuid.uuid4().hex[:8]}")


def through_links(path: Path) -> Path:
    """Where an output really goes: `path`, or where it leads as a symbolic link, which stays a link.

    Raises:
        UserError: it leads in a circle, or into a folder that is not there (a disk that is not mounted, for example).
    """
    try:
        target = path.resolve()
    except (RuntimeError, OSError):
        raise UserError(f"{path}: this symbolic link leads in a circle; remove it") from None
    if path.is_symlink() and not target.parent.is_dir():
        raise UserError(
            f"{path}: this is a symbolic link to {target}, whose folder is not there; make that folder, or remove the "
            "link"
        )
    return target if path.is_symlink() else path


def require_file_place(path: Path) -> None:
    """Refuse an output file, before any work, that cannot take its place in the end.

    Raises:
        UserError: at `path` is a folder or a device, or a symbolic link that leads nowhere.
    """
    target = through_links(path)
    if target.is_dir():
        raise UserError(f"{path}: this is a folder, a file was expected; move it away, or choose another name")
    if target.exists() and not target.is_file():
        raise UserError(f"{path}: this is no ordinary file; choose another name for the output")


def require_folder_place(path: Path) -> None:
    """Refuse an output folder, before any work, that cannot take its place in the end.

    Raises:
        UserError: `path` or a part of it is a file, or a symbolic link that leads nowhere.
    """
    for part in (path, *path.parents):
        target = through_links(part)
        if target.is_dir():
            return
        if target.exists():
            raise UserError(f"{path}: cannot be written ({part} is a file, not a folder); choose another output folder")


@contextlib.contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; it appears under its name only when the block ends well (fsync, rename).

    A symbolic link stays one: the file that it leads to is replaced.

    Raises:
        UserError: see `require_file_place`.
    """
    require_file_place(path)
    path = through_links(path)
    partial = beside(path, "partial")
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
        for file in partial.rglob("*"):
            if file.is_file():
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
    path = through_links(path)
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


def require_writable(folder: Path) -> None:
    """Make `folder` and write a byte in it: a full or read-only place is found before any work, not after it.

    Raises:
        UserError: the folder cannot be made or written.
    """
    require_folder_place(folder)
    folder = through_links(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error


def require_hub_cache() -> None:
    """Find out before a download that the hub's cache can be written (a container's HOME often cannot).

    Raises:
        UserError: it cannot.
    """
    folder = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    try:
        require_writable(folder)
    except UserError as error:
        raise UserError(
            f"{folder}: the hub's cache cannot be written; set HF_HOME to a folder of yours (export HF_HOME=DIR)"
        ) from error


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
