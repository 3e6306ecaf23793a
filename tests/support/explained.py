"""Explanations made for a test."""

from pathlib import Path


def explain(records: Path, output: Path) -> list[object]:
    """enhance.py with explanations that people wrote: it needs no teacher."""
    return ["enhance", "--name", "field:sentence", "--input", records, "--output", output, "--task_type", "cot_text"]
