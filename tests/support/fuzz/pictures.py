"""Pictures of the report are drawn once for the same numbers: most damages leave them, and drawing is slow."""

import shutil
import sys
from pathlib import Path
from typing import Any

from teacherlm.report import atlas_results, sections
from teacherlm.report import main as report

KNOWN: dict[str, str] = {}
"""Numbers and labels -> the picture, which is the same for the same ones (see src/teacherlm/report/figures.py)."""
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
