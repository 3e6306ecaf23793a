"""Read the tables of a comparison."""

import csv
from pathlib import Path


def read_csv(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]
