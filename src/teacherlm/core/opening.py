"""Safe opening of files: fixed names are opened without following links, and only ordinary files are read."""

import errno
import io
import os
import stat
from pathlib import Path

from teacherlm.core.errors import UserError


def create(path: Path, mode: int = 0o666) -> int:
    """Create a new file and open it for reading and writing; return its descriptor.

    Raises:
        OSError: something with that name exists already, even a link.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def open_unlinked(path: Path, flags: int = os.O_RDWR) -> int:
    """Open a file whose name is fixed, such as a lock; create it if it is missing. Return its descriptor.

    Args:
        flags: flags for `os.open`. The flags that create the file and follow no link are added.

    Raises:
        UserError: it is a link (symbolic or hard), a folder, or anything else that is not an ordinary file. Writing to
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
    """A named pipe, a device or a socket was found where a file was expected.

    It is also a ValueError, so code that skips unreadable files skips this one too.
    """


def open_ordinary(path: Path) -> io.BufferedReader:
    """Open a file for reading, after checking that it is an ordinary file. Links are followed.

    Opening a named pipe would wait for a writer, and reading a device such as /dev/zero would never end.

    Raises:
        OSError: it cannot be opened, or it is a folder.
        NotOrdinaryError: it is neither a file nor a folder.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(number).st_mode
        if stat.S_ISDIR(found):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found):
            raise NotOrdinaryError(f"{path}: this is a named pipe or a device, but an ordinary file was expected")
        return open(number, "rb")
    except BaseException:
        os.close(number)
        raise


def not_ordinary(path: Path) -> UserError:
    """The error for something else in the place of a file whose name is fixed."""
    what = "a folder" if path.is_dir() and not path.is_symlink() else "a link, or not an ordinary file"
    return UserError(
        f"{path}: this is {what}, and this program did not make it; find out who put it there, and remove it"
    )
