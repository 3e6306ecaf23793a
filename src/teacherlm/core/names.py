"""Names that come from data: checks whether one can be a part of a path, and conversion to one that can."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from teacherlm.core.errors import UserError
from teacherlm.core.terminal import shown

LONGEST_NAME = 200
"""Maximum number of bytes of a name from data. File systems allow 255, and file names also have endings."""


def plain_name(name: str, where: str) -> str:
    """Return a name that was read from data, after checking that it can be the name of a file in a folder.

    Args:
        where: the file and the field of the name, for messages.

    Raises:
        UserError: the name is empty, too long, starts with a dot, or has a slash or a character that cannot be printed.
    """
    if not is_plain_name(name) or name.startswith(".") or len(name.encode()) > LONGEST_NAME:
        raise UserError(
            f"{where}: a plain name was expected (no slashes, no dot at its beginning, at most {LONGEST_NAME} bytes), "
            f"found {shown(name)}; the name of a file is made from it"
        )
    return name


def meant(name: str, known: Sequence[str], further: Sequence[str] = ()) -> str:
    """The end of a message about an unknown name: the names that are near it, or the list of all.

    Args:
        further: names that are offered only if they are near, and if no name of `known` is.
    """
    near = difflib.get_close_matches(name, known, cutoff=0.5) or difflib.get_close_matches(name, further, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"


def file_name(name: str) -> str:
    """A file name made from any name, such as a task's: `math/algebra` becomes `math%2Falgebra`.

    Different names give different file names. No result leads to another folder or names a hidden file or a manifest.
    """
    return re.sub(
        r"[^\w .,()+=@~-]|^\.|\.(?=manifest$)",
        lambda mark: quote(mark[0], safe="", errors="surrogatepass").replace(".", "%2E"),
        name,
    )


def require_utf8(path: Path) -> None:
    """Refuse an output whose path is not UTF-8, before any work: manifests and libraries could not write the path.

    Raises:
        UserError: the name of the output or of a folder above it is not valid UTF-8.
    """
    try:
        os.fsencode(path.absolute()).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{str(path.absolute())!a}: this path is not valid UTF-8; rename it, or choose another output"
        ) from None


def is_plain_name(name: object) -> bool:
    """Whether a name that was read from a file names one file or folder without leading to another folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and name.isprintable()
