"""Text from elsewhere as a terminal can show it: one line, printable, of a length at most."""

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


def shown(value: object) -> str:
    """A value of the user's data as a message quotes it: its beginning."""
    return repr(str(value)[:60])
