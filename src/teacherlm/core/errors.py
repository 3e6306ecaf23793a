"""A user's mistake is one line on stderr and exit status 2; only our own mistakes show a traceback."""

import errno
import sys

from teacherlm.core.redaction import redacted
from teacherlm.core.terminal import printable


class UserError(Exception):
    """Something the user can mend. The message names what was found, what was expected and what to do."""


DISK_ERRORS = {
    errno.ENOSPC: "no space is left on the device; free some, then run the same command again: it continues",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again: it continues",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may use",
    errno.EPERM: "operation not permitted; choose a folder that you may use",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "this is a folder, a file was expected",
    errno.ELOOP: "this symbolic link leads in a circle; remove it",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}


def disk_error(error: BaseException) -> UserError | None:
    """The UserError that says what an operating system error means, or None when it is not one of the disk's.

    Libraries wrap such errors (safetensors raises its own class), so the chain of causes and the text are read too.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
            return UserError(f"{cause.filename or 'writing'}: {DISK_ERRORS[cause.errno]}")
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            if f"(os error {number})" in str(cause):
                return UserError(f"writing: {DISK_ERRORS[number]}")
        cause = cause.__cause__ or cause.__context__
    return None


def locale_error(error: BaseException) -> UserError | None:
    """The UserError for a name that the locale has no letters for, or a library none in UTF-8; None otherwise."""
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeEncodeError) and encoding == "utf-8" and "/" in error.object:
        return UserError(f"{error.object!a}: this path has bytes that are no UTF-8; rename it")
    if isinstance(error, UnicodeEncodeError) and encoding != "utf-8":
        return UserError(f"the locale's encoding {encoding} has no letters for {error.object!a}; export LC_ALL=C.UTF-8")
    return None


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none: for errors of libraries with long stories."""
    return printable(redacted(next(iter(str(error).strip().splitlines()), ""))) or type(error).__name__


def one_line(error: BaseException | str) -> str:
    """The error's text as a log and a terminal can show it: on one line, cut, and without secrets."""
    return printable(redacted(str(error)))
