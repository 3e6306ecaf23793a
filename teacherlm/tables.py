"""Tables of text, as Markdown reads them too."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns; the first row is its head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
