"""Names from data: whether one can be a part of a path, and one that can, made of it."""

import os
import re
from pathlib import Path
from urllib.parse import quote

from teacherlm.core.errors import UserError
from teacherlm.core.terminal import shown

LONGEST_NAME = 200
"""Bytes of a name that comes from data; file systems take 255, and ours get endings."""


def plain_name(name: str, where: str) -> str:
    """A name that was read from data, once it is sure that as a part of a path it is one name in a folder.

    Args:
        where: the name's place, for messages: a file and a field.

    Raises:
        UserError: it is empty, too long, hidden or a folder's own (`.`, `..`), or has a slash or a character that
            cannot be printed.
    """
    if not is_plain_name(name) or name.startswith(".") or len(name.encode()) > LONGEST_NAME:
        raise UserError(
            f"{where}: a plain name was expected, without slashes, without a dot at its beginning and of at most "
            f"{LONGEST_NAME} bytes, found {shown(name)}; it becomes the name of a file"
        )
    return name


def file_name(name: str) -> str:
    """Any name, of a task for example, as that of a file: `math/algebra` is `math%2Falgebra`.

    Two names never become the same one, and none leads to another folder or is that of a hidden file or a manifest.
    """
    return re.sub(
        r"[^\w .,()+=@~-]|^\.|\.(?=manifest$)",
        lambda mark: quote(mark[0], safe="", errors="surrogatepass").replace(".", "%2E"),
        name,
    )


def require_utf8(path: Path) -> None:
    """Refuse an output, before any work, whose path manifests and libraries could not write: they are all in UTF-8.

    Raises:
        UserError: its name, or that of a folder above it, is no UTF-8.
    """
    try:
        os.fsencode(path.absolute()).decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{str(path.absolute())!a}: this path has bytes that are no UTF-8; rename it, or choose another output"
        ) from None


def is_plain_name(name: object) -> bool:
    """Whether a name from a file is that of one file or folder, in the folder that it is looked for in."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and name.isprintable()
