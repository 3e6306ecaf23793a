"""The start and the end of a program: its exit status, and a user's mistake as one line on stderr."""

import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from teacherlm.core.errors import UserError, disk_error, locale_error, one_line


def open_standard_streams() -> None:
    """Open /dev/null for each standard stream that the caller closed (`>&-`).

    Otherwise the next opened file would get the stream's number, and libraries would print into that file.
    """
    number = 0
    while number < 3:
        number = os.open(os.devnull, os.O_RDWR)  # the system gives the lowest free number
        if number < 3:
            os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)


def require_current_folder() -> None:
    """End with one line if the current folder was deleted. Libraries would end silently or with a traceback."""
    try:
        Path.cwd()
    except FileNotFoundError:
        print_error(UserError("the current folder was deleted; change to another one (cd) and run this again"))
        sys.exit(2)


def print_any_text() -> None:
    """Let print write `\\xe9` for a character that the terminal cannot encode (PYTHONIOENCODING=ascii), not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_for_shell(text: str) -> None:
    """Print a file's name, or a part of one, for a shell to read: its bytes, independent of the terminal's encoding.

    Raises:
        UserError: the name has a line break. The shell would take the rest for another value.
    """
    if "\n" in text:
        raise UserError(f"{text!r}: this name has a line break, which a shell cannot handle; rename it")
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    sys.stdout.buffer.flush()


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: with 0 or what it returns, with 2 after a UserError, with 130 after Ctrl-C."""
    open_standard_streams()
    require_current_folder()
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


def run_module(name: str) -> None:
    """Run the `main` of a module of this package, and exit.

    The module is imported within `run`, because it may import torch, which needs open streams and a current folder.
    """

    def main() -> int | None:
        status: int | None = importlib.import_module(f"teacherlm.{name}").main()
        return status

    run(main)


def called() -> str:
    """The name with which this program was called. Its messages begin with it."""
    return Path(sys.argv[0]).name


def print_error(error: UserError) -> None:
    """Print an error as one line on stderr. A script may then do other work, and end with status 2 afterwards."""
    print(f"{called()}: error: {one_line(error)}", file=sys.stderr, flush=True)
