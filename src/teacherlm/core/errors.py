"""A user's mistake is one line on stderr and exit status 2; only our own mistakes show a traceback."""

import argparse
import errno
import io
import math
import operator
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from teacherlm.core.redaction import redacted


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
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return UserError(f"{error.filename or 'writing'}: {DISK_ERRORS[error.errno]}")
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            if f"(os error {number})" in str(error):
                return UserError(f"writing: {DISK_ERRORS[number]}")
        error = error.__cause__ or error.__context__
    return None


def locale_error(error: BaseException) -> UserError | None:
    """The UserError for a name that the locale has no letters for, or a library none in UTF-8; None otherwise."""
    encoding = sys.getfilesystemencoding()
    if isinstance(error, UnicodeEncodeError) and encoding == "utf-8" and "/" in error.object:
        return UserError(f"{error.object!a}: this path has bytes that are no UTF-8; rename it")
    if isinstance(error, UnicodeEncodeError) and encoding != "utf-8":
        return UserError(f"the locale's encoding {encoding} has no letters for {error.object!a}; export LC_ALL=C.UTF-8")
    return None


def print_any_text() -> None:
    """Let print write `\\xe9` where the terminal's encoding lacks a letter (PYTHONIOENCODING=ascii), and not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_for_shell(text: str) -> None:
    """Print what a shell reads as a file's name or part of one: its bytes, whatever the terminal's encoding.

    Raises:
        UserError: it has a line break, where the shell would take the rest for another value.
    """
    if "\n" in text:
        raise UserError(f"{text!r}: this name has a line break, with which a shell cannot handle it; rename it")
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    sys.stdout.buffer.flush()


LIST_MISSING = "print the numbers of what is not done (shards, models; otherwise 0), and do nothing"
"""Help of a flag that every stage has, for the chain to know what to submit."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake in the flags is a UserError: one line, without the usage of thirty flags."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0, or what it returns; 2 after a UserError; 130 after Ctrl-C."""
    print_any_text()
    try:
        status = main() or 0
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141
    except Exception as error:
        mistake = error if isinstance(error, UserError) else disk_error(error) or locale_error(error)
        if mistake is None:
            raise
        print_error(mistake)
        status = 2
    sys.stdout.flush()
    sys.exit(status)


def print_error(error: UserError) -> None:
    """One line on stderr; for a script that goes on with other work, and ends with status 2 afterwards."""
    print(f"{Path(sys.argv[0]).name}: error: {one_line(error)}", file=sys.stderr, flush=True)


def require_number(
    name: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a flag's number that is not finite or out of its range; None, a flag that was not given, is accepted.

    Raises:
        UserError: it names the flag, the range and the number.
    """
    if value is None:
        return
    if not math.isfinite(value):
        raise UserError(f"--{name}: a finite number was expected, found {value}")
    for bound, holds, words in (
        (least, operator.ge, "at least"),
        (above, operator.gt, "more than"),
        (most, operator.le, "at most"),
        (below, operator.lt, "less than"),
    ):
        if bound is not None and not holds(value, bound):
            raise UserError(f"--{name}: {words} {bound} was expected, found {value}")


def share_of(text: str) -> tuple[int, int]:
    """(I, N) of `--shard I/N`: the share numbered I of N, 0 the first."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard: I/N with 0 <= I < N was expected, found {text!r}")
    return int(index), int(count)


LONGEST = 2000
"""Number of characters of a message at most: it may quote a server's answer or a whole file."""


def printable(text: str, longest: int = LONGEST) -> str:
    """Text from elsewhere (a server's answer, a file, a library's error) as one line that a terminal can show.

    Whatever is no printable character (a terminal's escape sequences, other control characters, marks that turn the
    direction of writing, lone surrogates) is written as `repr` writes it, for example `\\x1b`. A longer text is cut in
    its middle, because the beginning of our messages says what is wrong and their end what to do.
    """
    words = " ".join(cut(text, longest).split())
    return cut(escaped(words), longest)


def escaped(text: str) -> str:
    """A line of text, its blanks and length as they are, whose characters a terminal prints and does not obey."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def cut(text: str, longest: int) -> str:
    """A text of at most `longest` characters, three quarters of them from its beginning."""
    if len(text) <= longest:
        return text
    left = longest - len(CUT)
    end = left // 4
    return text[: left - end] + CUT + text[len(text) - end :]


CUT = " [...] "


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none: for errors of libraries with long stories."""
    return printable(redacted(next(iter(str(error).strip().splitlines()), ""))) or type(error).__name__


def one_line(error: BaseException | str) -> str:
    """The error's text as a log and a terminal can show it: on one line, cut, and without secrets."""
    return printable(redacted(str(error)))


def shown(value: object) -> str:
    """A value of the user's data as a message quotes it: its beginning."""
    return repr(str(value)[:60])
