"""All files below a folder, including those behind links."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from teacherlm.core.errors import UserError

MOST_VISITS = 100
"""Maximum number of ways through links to one folder. n folders that link to one another make n! ways, perhaps on
purpose."""


def files_below(folder: Path) -> Iterator[Path]:
    """All ordinary files below a folder, ordered by name, including those behind links to files and folders.

    A link to a folder above it in this tree is skipped, because the files there are found anyway.

    Raises:
        UserError: a link leads to a folder that contains the tree, or too many links lead to one folder.
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
        except OSError:  # missing or unreadable: the code that needs a file of it reports that
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
                    raise UserError(f"{entry.path}: this link leads to {real}, which contains it; remove the link")
                below.append((place / entry.name, (*way, real)))
        waiting += reversed(below)
