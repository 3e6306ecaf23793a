"""Checks of owners: settings are read only from files, and a chain is written only into folders, of this user or root.

Folders on a cluster are shared. Another user may have put a file with the expected name there on purpose.
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
    """Whether a file belongs to this user or to root, whom everybody on a machine has to trust."""
    return found.st_uid in (os.geteuid(), 0)


def user_name(number: int) -> str:
    """The name of a user, or `user NUMBER` if the machine does not know the name."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def read_own(path: Path, most: int, writable: int = WRITABLE_BY_OTHERS) -> bytes:
    """The bytes of an ordinary file that this user or root owns. Symbolic links and pipes are refused.

    Args:
        most: the maximum number of bytes.
        writable: the file must have none of these permissions.

    Raises:
        UserError: the file is missing, belongs to another user, may be written by others, or is too large.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path}: this is a symbolic link, but an ordinary file was expected") from None
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: this is not an ordinary file")
        if not is_own(found):
            raise UserError(
                f"{path}: this file belongs to {user_name(found.st_uid)}; a file of {user_name(os.geteuid())} or root "
                "was expected"
            )
        if found.st_mode & writable:
            raise UserError(f"{path}: other users may write this file, so it is not read; chmod go-w FILE forbids that")
        with open(number, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(number)
    if len(content) > most:
        raise UserError(f"{path}: at most {most} bytes were expected, and it has more; is this the right file?")
    return content


def make_own_folder(folder: Path, above: Path) -> None:
    """Make a folder and the missing folders between it and `above`. All of them must belong to this user or root.

    Args:
        folder: a folder below `above`, which may be shared with other users.

    Raises:
        UserError: one of them belongs to another user, or cannot be made or written.
    """
    parts = [part for part in (folder, *folder.parents) if above in part.parents]
    for part in reversed(parts):
        try:
            part.mkdir(parents=True, exist_ok=True)
            for found in (part.lstat(), part.stat()):  # the owners of a symbolic link and of its target
                if not is_own(found):
                    raise UserError(
                        f"{part}: this folder belongs to {user_name(found.st_uid)}; the results of two users do not go "
                        "into one folder: choose a folder of your own (RUNS=...)"
                    )
        except FileExistsError:
            raise UserError(f"{part}: this is not a folder; move it away, or choose another one (RUNS=...)") from None
        except OSError as error:
            raise UserError(f"{part}: cannot be made ({error.strerror}); choose another folder (RUNS=...)") from None
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(f"{folder}: you may not write there; choose a folder of your own (RUNS=...)")
