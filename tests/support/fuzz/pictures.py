"""Draw each picture of the report only once, because drawing is slow and most damages do not change the pictures."""

import shutil
import sys
from pathlib import Path
from typing import Any

from teacherlm.report import atlas_results, sections
from teacherlm.report import main as report

KNOWN: dict[str, str] = {}
"""Maps numbers and labels to the picture, which depends on nothing else (see src/teacherlm/report/figures.py)."""
draw = sections.draw


def drawn_once(*arguments: Any) -> str:
    key = repr(arguments)
    if key not in KNOWN:
        KNOWN[key] = draw(*arguments)
    return KNOWN[key]


def keep_pictures(folder: Path) -> None:
    """Draw the pictures of a run's folder now, before the children begin."""
    sections.draw = atlas_results.draw = drawn_once
    sys.argv = ["report.py", str(folder)]
    report.main()
    shutil.rmtree(folder / "report")
