"""How a program begins and ends: its exit status, and a user's mistake as one line on stderr."""

import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from teacherlm.core.errors import UserError, disk_error, locale_error, one_line


def open_standard_streams() -> None:
    """Open /dev/null for each of the standard streams that the caller closed (`>&-`).

    The next file that is opened would get its number, and what libraries print would go into that file.
    """
    number = 0
    while number < 3:
        number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
        if number < 3:
            os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)


def require_current_folder() -> None:
    """End with one line where the current folder was deleted: libraries end without a word, or with a traceback."""
    try:
        Path.cwd()
    except FileNotFoundError:
        print_error(UserError("the current folder was deleted; change to another one (cd) and call this again"))
        sys.exit(2)


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


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: 0, or what it returns; 2 after a UserError; 130 after Ctrl-C."""
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

    The module is imported by `run`, because torch, which it imports, needs open streams and a current folder.
    """

    def main() -> int | None:
        status: int | None = importlib.import_module(f"teacherlm.{name}").main()
        return status

    run(main)


def print_error(error: UserError) -> None:
    """One line on stderr; for a script that goes on with other work, and ends with status 2 afterwards."""
    print(f"{Path(sys.argv[0]).name}: error: {one_line(error)}", file=sys.stderr, flush=True)
