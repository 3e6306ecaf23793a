"""Make a page that compares runs, and write its tables as Markdown and CSV files.

A run is given as its folder (runs/creak/all), as its path under --runs (creak/all, creak), as the name of a finetuning
in it (smollm2-135m_text_seed0), or as a folder with ATLAS experiments. The last checkpoint of each finetuning is
compared, because its choice does not depend on the test questions.
"""

import csv
import io
import re
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from teacherlm.core import tables
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.flags import flag, parse
from teacherlm.core.lock import one_writer
from teacherlm.core.names import file_name
from teacherlm.core.outputs import require_writable
from teacherlm.core.places import runs_folder
from teacherlm.core.terminal import printable
from teacherlm.report import sections
from teacherlm.report.atlas_results import atlas_sections, is_atlas_folder, read_experiments
from teacherlm.report.page import Cell, Part, Section, render
from teacherlm.report.run_folder import RunFolder, is_run_folder, read_run_folder
from teacherlm.report.scored import Scored
from teacherlm.report.training_run import Run


@dataclass(frozen=True)
class CompareFlags:
    """The runs to compare, and the folder of the page."""

    names: tuple[str, ...] = flag(positional=True, help="runs: folders, paths under --runs, or names of finetunings")
    runs: Path = flag(factory=runs_folder, help="folder of all runs (default: $RUNS, or runs)")
    output: Path | None = flag(None, help="folder of the page and tables (default: RUNS/compare/NAMES)")
    open: bool = flag(False, help="open the page in the browser")


def main() -> None:
    flags = parse(CompareFlags, __doc__, example="teacherlm compare creak/all creak/limit-200 --open")
    found = [folder for name in flags.names for folder in find(flags.runs, name)]
    title = "_".join(re.sub(r"[^\w.-]+|^\.+", "-", name) for name in flags.names)
    output = flags.output or flags.runs / "compare" / title
    require_writable(output)
    atlas = [folder for folder in found if is_atlas_folder(folder.folder)]
    if atlas and len(atlas) < len(found):
        raise UserError("chains' runs and ATLAS experiments cannot be compared: they present the questions differently")
    made, missing = compare_atlas(atlas) if atlas else compare_runs(found)
    page = output / "index.html"
    with one_writer(page):  # this lock also covers the tables beside the page
        with whole_file(page) as file:
            file.writelines(render(" and ".join(flags.names), made, missing, None))
        for section in made:
            for part in section.parts:
                if part.rows:
                    write_tables(output, part.name, part)
    print(f"compare: wrote {printable(str(page))}, and its tables as Markdown and CSV beside it")
    if flags.open:
        webbrowser.open(page.resolve().as_uri())


def find(runs: Path, name: str) -> list[RunFolder]:
    """The folders of runs that a name stands for. For the name of a finetuning, they contain only that finetuning.

    Raises:
        UserError: the name does not stand for a run.
    """
    for folder in (Path(name), runs / name):
        if is_run_folder(folder):
            return [read_run_folder(folder)]
        if folder.is_dir() and is_atlas_folder(folder):
            return [RunFolder(folder, [], [], [], [])]
        if below := [inner for inner in sorted(folder.glob("*")) if is_run_folder(inner)]:
            return [read_run_folder(inner) for inner in below]
    folders = [folder for folder in sorted(runs.glob("*/*")) if is_run_folder(folder)]
    holding = [
        folder for folder in folders if any((folder / part / name).is_dir() for part in ("finetune", "evaluate"))
    ]
    if not holding:
        raise UserError(f"{name}: no such run under {runs}; give a run's folder (creak/all) or a finetuning's name")
    return [only(read_run_folder(folder), name) for folder in holding]


def only(found: RunFolder, name: str) -> RunFolder:
    """The folder of a run, with only one of its finetunings or untrained models."""
    runs = [one for one in found.runs if one.name == name]
    kept = [scored for one in runs for scored in one.scored if not scored.step]
    kept = kept or [scored for scored in found.untrained if scored.path.parent.name == name]
    missing = [said for said in found.missing if name in said]
    for one in runs:
        one.scored = [replace(scored, missing=missing) for scored in one.scored]
    kept = [replace(scored, missing=missing) for scored in kept]
    return RunFolder(found.folder, runs, kept, found.manifests, missing)


def compare_runs(found: Sequence[RunFolder]) -> tuple[list[Section], list[str]]:
    """The sections for all runs together. If there are several folders, the names begin with the folder."""
    several = len({folder.folder.resolve() for folder in found}) > 1
    runs: list[Run] = []
    untrained: list[Scored] = []
    for folder in found:
        prefix = f"{folder.title}: " if several else ""
        untrained += [renamed(scored, prefix) for scored in folder.untrained if scored.path not in paths(untrained)]
        for one in folder.runs:
            scored = [renamed(scored, prefix) for scored in one.scored]
            runs.append(replace(one, name=prefix + one.name, scored=scored))
    tasks = list(dict.fromkeys(task for folder in found for task in folder.tasks))
    made = [
        sections.accuracies(runs, untrained, tasks),
        sections.comparisons(runs, untrained, tasks),
        sections.parts_of_tasks(runs, untrained, tasks),
        sections.training(runs),
    ]
    return made, [f"{folder.title}: {said}" for folder in found for said in folder.missing]


def paths(scored: Sequence[Scored]) -> set[Path]:
    return {one.path for one in scored}


def renamed(scored: Scored, prefix: str) -> Scored:
    return replace(scored, name=prefix + scored.name)


def compare_atlas(found: Sequence[RunFolder]) -> tuple[list[Section], list[str]]:
    missing: list[str] = []
    experiments = [one for folder in found for one in read_experiments(folder.folder, missing)]
    return atlas_sections(experiments), missing


def write_tables(folder: Path, name: str, part: Part) -> None:
    """Write NAME.md with the numbers as on the page, and NAME.csv with all their digits. NAME may be any text."""
    name = file_name(name)
    with whole_file(folder / f"{name}.md") as file:
        file.write(as_text(part) + "\n")
    columns = [list(column) for column in zip(part.head, *part.rows)]
    columns = [split for title, *cells in columns for split in full(title, cells)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(for_spreadsheet, row) for row in zip(*columns))
    with whole_file(folder / f"{name}.csv") as file:
        file.write(text.getvalue())


def as_text(part: Part) -> str:
    """The table of a part as text. Rows of single seeds are indented below the row of their replicates."""
    rows = [part.head, *([shown(cell) for cell in row] for row in part.rows)]
    return tables.table(rows, indented={number + 1 for number in part.members})


def shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}" if cell == 0 or abs(cell) >= 0.0005 else f"{cell:.1e}"
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return " - ".join(map(shown, cell))
    return "-" if cell is None else str(cell)


FORMULA = re.compile(r"[=+\-@\t\r＝＋－＠].")
"""Beginnings of a text that a spreadsheet takes for a formula, which could start programs and send data."""


def for_spreadsheet(value: Cell) -> Cell:
    """A value for a CSV file. A text that a spreadsheet would take for a formula gets a leading apostrophe."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if FORMULA.match(value) or FORMULA.match(text) else text


def full(title: str, cells: Sequence[Cell]) -> list[list[Cell]]:
    """The columns of a CSV file for a column of a table. A column of intervals gives two."""
    intervals = [cell for cell in cells if cell is None or isinstance(cell, list | tuple)]
    if title == sections.INTERVAL and len(intervals) == len(cells):
        ends = (("low", 0), ("high", 1))
        return [[f"{title}, {name}", *("" if cell is None else cell[end] for cell in intervals)] for name, end in ends]
    return [[title, *("" if cell is None else cell for cell in cells)]]
