"""Files as tests read them, and the real data beside the checkout."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.programs import ROOT

SHARED = ROOT.parent / "shared" / "data"


def read_lines(path: Path) -> list[Any]:
    """The records of JSON lines. splitlines() would also split at U+0085 and U+2028, which occur in MMLU."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and the modification time of every file below a folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def sample_claims(split: str = "train") -> Iterator[dict]:
    for line in (ROOT / "benchmarks" / "sample" / f"{split}.json").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)
