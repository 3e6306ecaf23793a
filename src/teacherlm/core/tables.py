"""Text tables in Markdown's format, and intervals drawn as text."""

import re
from collections.abc import Collection, Sequence

from teacherlm.core.terminal import printable


def table(rows: Sequence[Sequence[str]], indented: Collection[int] = ()) -> str:
    """A table with aligned columns. The first row is its header. Special characters in a cell are escaped.

    Args:
        indented: the numbers of the rows whose first cell is indented, because they belong to a row above. The header
            has the number 0.
    """
    rows = [[cell_text(cell) for cell in row] for row in rows]
    rows = [
        [f"  {cell}" if not place and number in indented else cell for place, cell in enumerate(row)]
        for number, row in enumerate(rows)
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


LONGEST_CELL = 500


def cell_text(text: str) -> str:
    """A text as a table cell for Markdown and for a terminal: one line, with the characters escaped that end a cell."""
    return re.sub(r"([\\|<`])", r"\\\1", printable(text, LONGEST_CELL))


WIDTH = 50
"""Columns of the drawn intervals."""


def draw_intervals(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """One line per row (name, low, value, high), drawn as ---o--- on a scale from the lowest to the highest bound."""
    lowest, highest = min(low for _, low, _, _ in rows), max(high for *_, high in rows)
    scale = (WIDTH - 1) / max(highest - lowest, 1e-12)
    names = [printable(name, LONGEST_CELL) for name, *_ in rows]
    widest = max(map(len, names))
    lines = [f"{'':{widest}}  {lowest:<{WIDTH - 6}.4f}{highest:.4f}"]
    for name, (_, *numbers) in zip(names, rows):
        low, value, high = (min(WIDTH - 1, max(0, round((number - lowest) * scale))) for number in numbers)
        drawn = [" "] * WIDTH
        drawn[low : high + 1] = "-" * (high + 1 - low)
        drawn[value] = "o"
        lines.append(f"{name:{widest}}  {''.join(drawn).rstrip()}")
    return "\n".join(lines)
