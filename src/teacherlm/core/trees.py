"""All files below a folder, also those behind links."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from teacherlm.core.errors import UserError

MOST_VISITS = 100
"""Ways to one folder through links, beyond which they are a trap: n folders that link to one another make n! ways."""


def files_below(folder: Path) -> Iterator[Path]:
    """All ordinary files below a folder, by name, also those behind links to files and folders.

    A link that leads back to a folder above it in this tree is passed over, as what is behind it comes anyway.

    Raises:
        UserError: a link leads out of the tree to a folder that contains it, or links lead to one folder again and
            again.
    """
    root = os.path.realpath(folder)
    reached: Counter[str] = Counter()
    waiting: list[tuple[Path, tuple[str, ...]]] = [(folder, (root,))]  # (a folder, the real paths down to it)
    while waiting:
        place, way = waiting.pop()
        reached[way[-1]] += 1
        if reached[way[-1]] > MOST_VISITS:
            raise UserError(f"{place}: links lead here in more than {MOST_VISITS} ways; remove some")
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:  # not there, or not to be read: what needs a file of it says so
            continue
        below = []
        for entry in entries:
            if entry.is_file():
                yield place / entry.name
            elif entry.is_dir():
                linked = entry.is_symlink()
                real = os.path.realpath(entry.path) if linked else f"{way[-1].rstrip('/')}/{entry.name}"
                if linked and real in way:
                    continue
                if linked and os.path.commonpath((real, root)) == real:
                    raise UserError(f"{entry.path}: this link leads to {real}, a folder that it is in; remove the link")
                below.append((place / entry.name, (*way, real)))
        waiting += reversed(below)
