"""Files and folders that appear whole or not at all, in folders that other people may write to as well.

What a stage writes beside its output (partial files, locks, what is done so far) has a name that somebody else could
have taken for a link of theirs. Such a file is made new, or opened without following a link.
"""

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import quote

from teacherlm.core.errors import UserError, shown


def cache_folder() -> Path:
    """Where this project keeps what is costly to make again: TEACHERLM_CACHE, or the user's cache folder.

    Raises:
        UserError: neither is known, as HOME is not set and the system knows no home folder of this user.
    """
    if folder := os.environ.get("TEACHERLM_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "teacherlm"
    return in_home("~/.cache/teacherlm", "TEACHERLM_CACHE")


def in_home(path: str, variable: str) -> Path:
    """A path that begins with `~`, with the user's home folder in its place.

    Args:
        variable: of the environment, which names this folder where there is no home.

    Raises:
        UserError: HOME is not set, and the system knows no home folder of this user.
    """
    home = os.environ.get("HOME")
    with contextlib.suppress(RuntimeError):
        if not path.startswith("~") or home is None or Path(home).is_absolute():
            return Path(path).expanduser()
    raise UserError(
        f"there is no home folder for {path} (HOME is {'empty' if home == '' else home or 'not set'}); set HOME, or "
        f"{variable} to a folder of yours"
    )


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
    if not is_plain_name(name) or name.startswith(".") or len(name.encode()) > LONGEST_NAME:
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
    return path.with_name(f".{path.name}.tmp-{kind}-{secrets.token_hex(8)}")


def create(path: Path, mode: int = 0o666) -> int:
    """Make a file that is not there yet, and open it for reading and writing; returns its descriptor.

    Raises:
        OSError: something is there, be it a link.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def open_unlinked(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a file whose name is fixed, such as a lock; it is made where it is not there. Returns its descriptor.

    Args:
        flags: of `os.open`, beside those that make the file and follow no link.

    Raises:
        UserError: there is a link (symbolic or hard), a folder, or anything else that is no ordinary file: writing to
            it would change something elsewhere.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would block
    try:
        file = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise not_ordinary(path) from error
        raise
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(file)
        raise not_ordinary(path)
    return file


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


def not_ordinary(path: Path) -> UserError:
    """The error for what is in the place of a file whose name is fixed."""
    what = "a folder" if path.is_dir() and not path.is_symlink() else "a link, or no ordinary file"
    return UserError(
        f"{path}: this is {what}, and this program did not make it; find out who put it there, and remove it"
    )


MOST_VISITS = 100
"""Ways to one folder through links, beyond which they are a trap: n folders that link to one another make n! ways."""


def files_below(folder: Path) -> Iterator[Path]:
    """All ordinary files below a folder, by name, also those behind links to files and folders.

    A link that leads back to a folder above it in this tree is passed over, as what is behind it comes anyway.

    Raises:
        UserError: a link leads out of the tree to a folder that contains it, or links lead to one folder again and
            again.
    """
    root = os.path.realpath(folder)
    reached: Counter[str] = Counter()
    waiting: list[tuple[Path, tuple[str, ...]]] = [(folder, (root,))]  # (a folder, the real paths down to it)
    while waiting:
        place, way = waiting.pop()
        reached[way[-1]] += 1
        if reached[way[-1]] > MOST_VISITS:
            raise UserError(f"{place}: links lead here in more than {MOST_VISITS} ways; remove some")
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:  # not there, or not to be read: what needs a file of it says so
            continue
        below = []
        for entry in entries:
            if entry.is_file():
                yield place / entry.name
            elif entry.is_dir():
                linked = entry.is_symlink()
                real = os.path.realpath(entry.path) if linked else f"{way[-1].rstrip('/')}/{entry.name}"
                if linked and real in way:
                    continue
                if linked and os.path.commonpath((real, root)) == real:
                    raise UserError(f"{entry.path}: this link leads to {real}, a folder that it is in; remove the link")
                below.append((place / entry.name, (*way, real)))
        waiting += reversed(below)


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


def require_own_links(path: Path) -> None:
    """Refuse an output that is a symbolic link of another user's: it would replace what they chose, with our rights.

    Raises:
        UserError: the link, or one that it leads to, is neither this user's nor the system's.
    """
    for _ in range(40):  # `through_links` has refused circles
        if not path.is_symlink():
            return
        if path.lstat().st_uid not in (os.geteuid(), 0):
            raise UserError(
                f"{path}: this symbolic link is another user's, and an output would replace what it leads to; remove "
                "it, or choose another name"
            )
        path = path.parent / path.readlink()


def require_utf8(path: Path) -> None:
    """Refuse an output, before any work, whose path manifests and libraries could not write: they are all in UTF-8.

    Raises:
        UserError: its name, or that of a folder above it, is no UTF-8.
    """
    try:
        os.fsencode(path.absolute()).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{str(path.absolute())!a}: this path has bytes that are no UTF-8; rename it, or choose another output"
        ) from None


def is_plain_name(name: object) -> bool:
    """Whether a name from a file is that of one file or folder, in the folder that it is looked for in."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and name.isprintable()


def require_file_place(path: Path) -> None:
    """Refuse an output file, before any work, that cannot take its place in the end.

    Raises:
        UserError: at `path` is a folder or a device, or a symbolic link that leads nowhere or is another user's; or the
            path is no UTF-8.
    """
    require_utf8(path)
    target = through_links(path)
    require_own_links(path)
    if target.is_dir():
        raise UserError(f"{path}: this is a folder, a file was expected; move it away, or choose another name")
    if target.exists() and not target.is_file():
        raise UserError(f"{path}: this is no ordinary file; choose another name for the output")


def require_folder_place(path: Path) -> None:
    """Refuse an output folder, before any work, that cannot take its place in the end.

    Raises:
        UserError: as of `require_folder`, or `path` is another user's symbolic link.
    """
    require_folder(path)
    require_own_links(path)


def require_folder(path: Path) -> None:
    """Refuse a folder to write into that cannot be one.

    Raises:
        UserError: `path` or a part of it is a file, or a symbolic link that leads nowhere; or the path is no UTF-8.
    """
    require_utf8(path)
    for part in (path, *path.parents):
        target = through_links(part)
        if target.is_dir():
            return
        if target.exists():
            raise UserError(f"{path}: cannot be written ({part} is a file, not a folder); choose another output folder")


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


def require_writable(folder: Path) -> None:
    """Make `folder` and write a byte in it: a full or read-only place is found before any work, not after it.

    Raises:
        UserError: the folder cannot be made or written.
    """
    require_folder(folder)
    folder = through_links(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{secrets.token_hex(8)}"
        file = create(probe, 0o600)
        try:
            os.write(file, b"x")
        finally:
            os.close(file)
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error


def require_hub_cache() -> None:
    """Find out before a download that the hub's cache can be written (a container's HOME often cannot).

    Raises:
        UserError: it cannot.
    """
    folder = in_home(os.environ.get("HF_HOME") or "~/.cache/huggingface", "HF_HOME")
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
