"""The tables of a page as text, for Markdown files and for the terminal."""

from collections.abc import Sequence

from teacherlm.core import tables
from teacherlm.core.terminal import printable
from teacherlm.report.page import Cell, Part, Section

ON_THE_TERMINAL = ("accuracy", "comparisons")
"""The sections whose tables are printed."""


def table_of(part: Part) -> str:
    """The table of a part. Rows of single seeds are indented below the row of their replicates."""
    rows = [part.head, *([shown(cell) for cell in row] for row in part.rows)]
    return tables.table(rows, indented={number + 1 for number in part.members})


def said(sections: Sequence[Section], everything: bool = False) -> str:
    """The tables of accuracies and comparisons that have replicates, for the terminal. An empty text if there are none.

    Args:
        everything: whether the tables without replicates are printed too.
    """
    parts = [part for section in sections if section.name in ON_THE_TERMINAL for part in section.parts]
    told = [part for part in parts if part.rows and (part.members or everything)]
    return "".join(f"{printable(part.name)}\n{table_of(part)}\n\n" for part in told)


def shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}" if cell == 0 or abs(cell) >= 0.0005 else f"{cell:.1e}"
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return " - ".join(map(shown, cell))
    return "-" if cell is None else str(cell)
