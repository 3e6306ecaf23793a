"""Text from other sources, made fit for a terminal: one printable line of limited length."""

import os
from pathlib import Path

LONGEST = 2000
"""Maximum number of characters of a message, which may quote a server's answer or a whole file."""
TAIL = 20
"""Number of lines of a log that are shown."""
TAIL_BYTES = 2**16
"""Number of bytes at the end of a log that are read to find these lines."""


def printable(text: str, longest: int = LONGEST) -> str:
    """Text from other sources (a server's answer, a file, a library's error) as one line that a terminal can show.

    Characters that are not printable (a terminal's escape sequences, other control characters, marks that change the
    writing direction, lone surrogates) are written as `repr` writes them, for example `\\x1b`. A longer text is cut in
    its middle, because the beginning of our messages says what is wrong, and the end says what to do.
    """
    words = " ".join(cut(text, longest).split())
    return cut(escaped(words), longest)


def escaped(text: str) -> str:
    """A line of text in which characters that are not printable are escaped. Its spaces stay, and it is not cut."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def cut(text: str, longest: int) -> str:
    """A text of at most `longest` characters. A longer text keeps three quarters of them from its beginning."""
    if len(text) <= longest:
        return text
    left = longest - len(CUT)
    end = left // 4
    return text[: left - end] + CUT + text[len(text) - end :]


CUT = " [...] "


def plural(count: int, noun: str) -> str:
    """A number with its noun: 1 text, 2 texts."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def shown(value: object) -> str:
    """The beginning of a value of the user's data, quoted for a message."""
    return repr(str(value)[:60])


def last_lines(file: Path) -> list[str]:
    """The last lines of a log, with control characters escaped."""
    with open(file, "rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - TAIL_BYTES))
        text = handle.read(TAIL_BYTES).decode("utf-8", "replace")
    return [escaped(line.expandtabs()) for line in text.splitlines()[-TAIL:]]
