"""Checks that an output can be written at its path. They run before the work, not after it."""

import os
import secrets
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.names import require_utf8
from teacherlm.core.opening import create
from teacherlm.core.owners import is_own


def through_links(path: Path) -> Path:
    """The path that an output is written to: `path`, or its target if it is a symbolic link. The link stays a link.

    Raises:
        UserError: the link leads in a circle, or into a missing folder (for example, on a disk that is not mounted).
    """
    try:
        target = path.resolve()
    except (RuntimeError, OSError):
        raise UserError(f"{path}: this symbolic link leads in a circle; remove it") from None
    if path.is_symlink() and not target.parent.is_dir():
        raise UserError(
            f"{path}: this is a symbolic link to {target}, whose folder does not exist; make that folder, or remove "
            "the link"
        )
    return target if path.is_symlink() else path


def require_own_links(path: Path) -> None:
    """Refuse an output that is another user's symbolic link: that user could make us replace any of our files.

    Raises:
        UserError: the link, or a link that it leads to, belongs to neither this user nor root.
    """
    for _ in range(40):  # `through_links` has refused circles
        if not path.is_symlink():
            return
        if not is_own(path.lstat()):
            raise UserError(
                f"{path}: this symbolic link belongs to another user, and an output would replace its target; remove "
                "it, or choose another name"
            )
        path = path.parent / path.readlink()


def require_file_place(path: Path) -> None:
    """Refuse an output file that could not be put at `path` after the work.

    Raises:
        UserError: `path` is a folder, a device, a symbolic link that leads nowhere or belongs to another user, or is
            not valid UTF-8.
    """
    require_utf8(path)
    target = through_links(path)
    require_own_links(path)
    if target.is_dir():
        raise UserError(f"{path}: this is a folder, but a file was expected; move it away, or choose another name")
    if target.exists() and not target.is_file():
        raise UserError(f"{path}: this is not an ordinary file; choose another name for the output")


def require_folder_place(path: Path) -> None:
    """Refuse an output folder that could not be put at `path` after the work.

    Raises:
        UserError: see `require_folder`; or `path` is another user's symbolic link.
    """
    require_folder(path)
    require_own_links(path)


def require_folder(path: Path) -> None:
    """Refuse a path that cannot become a folder to write into.

    Raises:
        UserError: `path` or a part of it is a file or a symbolic link that leads nowhere, or it is not valid UTF-8.
    """
    require_utf8(path)
    for part in (path, *path.parents):
        target = through_links(part)
        if target.is_dir():
            return
        if target.exists():
            raise UserError(f"{path}: cannot be written ({part} is a file, not a folder); choose another output folder")


def require_writable(folder: Path) -> None:
    """Make `folder` and write a byte in it, so that a full or read-only disk is found before any work.

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
