"""Whether an output can be written where it is asked for: said at the start, not after the work."""

import os
import secrets
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.names import require_utf8
from teacherlm.core.opening import create
from teacherlm.core.owners import is_own


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
        if not is_own(path.lstat()):
            raise UserError(
                f"{path}: this symbolic link is another user's, and an output would replace what it leads to; remove "
                "it, or choose another name"
            )
        path = path.parent / path.readlink()


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
