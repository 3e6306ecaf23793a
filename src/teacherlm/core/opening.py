"""Files that are opened as what they are: no link is followed, nobody's other name of a file is written to."""

import errno
import os
import stat
from pathlib import Path

from teacherlm.core.errors import UserError


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


def not_ordinary(path: Path) -> UserError:
    """The error for what is in the place of a file whose name is fixed."""
    what = "a folder" if path.is_dir() and not path.is_symlink() else "a link, or no ordinary file"
    return UserError(
        f"{path}: this is {what}, and this program did not make it; find out who put it there, and remove it"
    )
