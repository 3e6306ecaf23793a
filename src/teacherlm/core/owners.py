"""Whose files and folders are used: settings are read from, and a chain is written into, what this user or root owns.

Folders on a cluster are shared. A file with the expected name may be another user's, and may have been put there on
purpose.
"""

import errno
import os
import pwd
import stat
from pathlib import Path

from teacherlm.core.errors import UserError

WRITABLE_BY_OTHERS = stat.S_IWOTH
WRITABLE_BY_GROUP_OR_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def is_own(found: os.stat_result) -> bool:
    """Whether something is this user's or root's, whom everybody on a machine has to trust."""
    return found.st_uid in (os.geteuid(), 0)


def user_name(number: int) -> str:
    """The name of a user, or the number where the machine has no name for it."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def read_own(path: Path, most: int, writable: int = WRITABLE_BY_OTHERS) -> bytes:
    """The bytes of an ordinary file that this user or root owns. No symbolic link is followed, no pipe is waited for.

    Args:
        most: number of bytes at most.
        writable: the file must have none of these permissions.

    Raises:
        UserError: there is no such file, it is another user's, others may write it, or it is too large.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: this is a symbolic link, an ordinary file was expected") from None
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: this is no ordinary file")
        if not is_own(found):
            raise UserError(
                f"{path}: this file is {user_name(found.st_uid)}'s; a file of {user_name(os.geteuid())} or root was "
                "expected"
            )
        if found.st_mode & writable:
            raise UserError(f"{path}: other users may write this file, so it is not read; chmod go-w would forbid them")
        with open(number, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(number)
    if len(content) > most:
        raise UserError(f"{path}: more than {most} bytes, which is too large for such a file")
    return content


def make_own_folder(folder: Path, above: Path) -> None:
    """Make a folder and those between it and `above`, where they are not there; all of them have to be this user's.

    Args:
        folder: it lies below `above`, which other users may share.

    Raises:
        UserError: one of them is another user's, or cannot be made or written.
    """
    parts = [part for part in (folder, *folder.parents) if above in part.parents]
    for part in reversed(parts):
        try:
            part.mkdir(parents=True, exist_ok=True)
            for found in (part.lstat(), part.stat()):  # of a symbolic link its own owner, and that of its target
                if not is_own(found):
                    raise UserError(
                        f"{part}: this is {user_name(found.st_uid)}'s; the results of two users do not go into one "
                        "folder: choose a folder of your own (RUNS=...)"
                    )
        except FileExistsError:
            raise UserError(f"{part}: this is no folder; move it away, or choose another folder (RUNS=...)") from None
        except OSError as error:
            raise UserError(f"{part}: cannot be made ({error.strerror}); choose another folder (RUNS=...)") from None
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"{folder}: you may not write there; choose a folder of your own (RUNS=...)")
