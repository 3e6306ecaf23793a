"""Explanations made for a test."""

from pathlib import Path


def explain(records: Path, output: Path) -> list[object]:
    """Run enhance.py with explanations that people wrote, so that no teacher is needed."""
    return ["enhance", "--name", "field:sentence", "--input", records, "--output", output, "--task_type", "cot_text"]
