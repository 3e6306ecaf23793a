"""Files that are opened as what they are: no link is followed, nobody's other name of a file is written to, and
nothing but an ordinary file is read."""

import errno
import io
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


class NotOrdinaryError(UserError, ValueError):
    """There is a named pipe, a device or a socket where a file to read was expected.

    It is a ValueError as well: whoever passes over files that cannot be read passes over this one.
    """


def open_ordinary(path: Path) -> io.BufferedReader:
    """Open a file for reading, links followed, once it is sure that it is an ordinary one.

    Opening a named pipe waits for somebody who writes to it, and reading a device such as /dev/zero never ends.

    Raises:
        OSError: it cannot be opened, or is a folder.
        NotOrdinaryError: it is something else than a file.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(number).st_mode
        if stat.S_ISDIR(found):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found):
            raise NotOrdinaryError(f"{path}: this is a named pipe or a device, an ordinary file was expected")
        return open(number, "rb")
    except BaseException:
        os.close(number)
        raise


def not_ordinary(path: Path) -> UserError:
    """The error for what is in the place of a file whose name is fixed."""
    what = "a folder" if path.is_dir() and not path.is_symlink() else "a link, or no ordinary file"
    return UserError(
        f"{path}: this is {what}, and this program did not make it; find out who put it there, and remove it"
    )
