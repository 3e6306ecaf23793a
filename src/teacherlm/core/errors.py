"""A user's mistake is one line on stderr and exit status 2. Only a bug in this project shows a traceback."""

import errno
import sys

from teacherlm.core.redaction import redacted
from teacherlm.core.terminal import printable


class UserError(Exception):
    """A mistake that the user can fix. The message names what was found, what was expected and what to do."""


DISK_ERRORS = {
    errno.ENOSPC: "no space is left on the device; free some, then run the same command again: it continues",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again: it continues",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; choose a folder that you may use",
    errno.EPERM: "operation not permitted; choose a folder that you may use",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.EISDIR: "this is a folder, but a file was expected",
    errno.ELOOP: "this symbolic link leads in a circle; remove it",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}


def disk_error(error: BaseException) -> UserError | None:
    """The UserError that explains an error of the disk or the file system, or None for any other error.

    Libraries wrap such errors (safetensors raises a class of its own), so the chain of causes and the texts are read
    too.
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
    """The UserError for a name that the locale or UTF-8 cannot encode, or None for any other error."""
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeEncodeError) and encoding == "utf-8" and "/" in error.object:
        return UserError(f"{error.object!a}: this path is not valid UTF-8; rename it")
    if isinstance(error, UnicodeEncodeError) and encoding != "utf-8":
        return UserError(f"the locale's encoding {encoding} cannot encode {error.object!a}; export LC_ALL=C.UTF-8")
    return None


def reason(error: BaseException) -> str:
    """The first line of an error's text, or the error's type if it has no text. Libraries' errors have many lines."""
    return printable(redacted(next(iter(str(error).strip().splitlines()), ""))) or type(error).__name__


def one_line(error: BaseException | str) -> str:
    """An error's text on one line, shortened and without secrets, for a log or a terminal."""
    return printable(redacted(str(error)))
