"""Models with code of their own."""

from collections.abc import Iterator
from pathlib import Path

from support.programs import ROOT


def source_files() -> Iterator[Path]:
    for folder in ("src", "enhance", "finetune", "evaluate", "atlas"):
        yield from (ROOT / folder).rglob("*.py")
