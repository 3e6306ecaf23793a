"""Where the files lie that are no code: in the checkout that this package is installed from, or packed into it."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parents[1] if (PACKAGE.parents[1] / "pyproject.toml").is_file() else PACKAGE / "data"
"""The checkout's folder. Of an installed package it is one with the same folders that a chain needs."""
