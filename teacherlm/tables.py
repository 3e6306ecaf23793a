"""Tables of text, as Markdown reads them too, and intervals drawn in text."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


WIDTH = 50
"""Columns of the drawn intervals."""


def draw_intervals(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """One line a row, from the lowest to the highest bound: ---o--- for (name, low, value, high)."""
    lowest, highest = min(low for _, low, _, _ in rows), max(high for *_, high in rows)
    scale = (WIDTH - 1) / max(highest - lowest, 1e-12)
    widest = max(len(name) for name, *_ in rows)
    lines = [f"{'':{widest}}  {lowest:<{WIDTH - 6}.4f}{highest:.4f}"]
    for name, *numbers in rows:
        low, value, high = (round((number - lowest) * scale) for number in numbers)
        drawn = [" "] * WIDTH
        drawn[low : high + 1] = "-" * (high + 1 - low)
        drawn[value] = "o"
        lines.append(f"{name:{widest}}  {''.join(drawn).rstrip()}")
    return "\n".join(lines)
