"""Make a page that compares runs, and write its tables as Markdown and CSV files.

A run is given as its folder (runs/creak/all), as its path under --runs (creak/all, creak), as the name of a finetuning
in it (smollm2-135m_text_seed0, or smollm2-135m_text for all seeds), or as a folder with ATLAS experiments. The last
checkpoint of each finetuning is compared, because its choice does not depend on the test questions.

Runs that differ only in the seed are one row, which unfolds. Results of `teacherlm evaluate` are given as the folder of
their model, and results of lm-eval as the samples_TASK_TIME.jsonl that `lm_eval --log_samples` wrote, or its folder.
"""

import csv
import hashlib
import io
import os
import re
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.flags import flag, parse
from teacherlm.core.lock import one_writer
from teacherlm.core.names import LONGEST_NAME, file_name
from teacherlm.core.outputs import require_writable
from teacherlm.core.places import runs_folder
from teacherlm.core.terminal import printable
from teacherlm.report import comparisons, sections
from teacherlm.report.atlas_results import atlas_sections, is_atlas_folder, read_experiments
from teacherlm.report.find_runs import find, last_results
from teacherlm.report.lm_eval_matching import with_ours
from teacherlm.report.lm_eval_samples import Source, find_sources, read_source, with_own_names
from teacherlm.report.page import Cell, Part, Section, render
from teacherlm.report.run_folder import RunFolder, is_run_folder
from teacherlm.report.scored import Scored
from teacherlm.report.text_tables import said, table_of
from teacherlm.report.training_run import Run


@dataclass(frozen=True)
class CompareFlags:
    """The runs to compare, and the folder of the page."""

    names: tuple[str, ...] = flag(
        positional=True,
        help="runs: folders, paths under --runs, or names of finetunings; or results of ours or of lm-eval",
    )
    runs: Path = flag(factory=runs_folder, help="folder of all runs (default: $RUNS, or runs)")
    output: Path | None = flag(None, help="folder of the page and tables (default: RUNS/compare/NAMES)")
    open: bool = flag(False, help="open the page in the browser")


def main() -> None:
    flags = parse(CompareFlags, __doc__, example="teacherlm compare creak/all creak/limit-200 --open")
    places = {name: [] if is_run_folder(Path(name)) else find_sources(Path(name)) for name in flags.names}
    sources = with_own_names([read_source(place) for found in places.values() for place in found])
    found = [folder for name in flags.names if not places[name] for folder in find(flags.runs, name)]
    output = flags.output or flags.runs / "compare" / title_of(flags.names)
    require_writable(output)
    atlas = [folder for folder in found if is_atlas_folder(folder.folder)]
    if atlas and (len(atlas) < len(found) or sources):
        raise UserError("chains' runs and ATLAS experiments cannot be compared: they present the questions differently")
    made, missing = compare_atlas(atlas) if atlas else compare_runs(found, sources)
    page = output / "index.html"
    with one_writer(page):  # this lock also covers the tables beside the page
        with whole_file(page) as file:
            file.writelines(render(" and ".join(flags.names), made, missing, None))
        for section in made:
            for part in section.parts:
                if part.rows:
                    write_tables(output, part.name, part)
    print(said(made, everything=bool(sources)), end="")
    print(f"compare: wrote {printable(str(page))}, and its tables as Markdown and CSV beside it")
    if flags.open:
        webbrowser.open(page.resolve().as_uri())


def title_of(names: Sequence[str]) -> str:
    """The name of the folder of a comparison. A long one is cut, and ends with a digest of the names."""
    title = "_".join(re.sub(r"[^\w.-]+|^\.+", "-", name) for name in names)
    whole = os.fsencode(title)
    if len(whole) <= LONGEST_NAME:
        return title
    return whole[: LONGEST_NAME - 9].decode("utf-8", "ignore") + "_" + hashlib.sha256(whole).hexdigest()[:8]


def compare_runs(found: Sequence[RunFolder], sources: Sequence[Source]) -> tuple[list[Section], list[str]]:
    """The sections for all runs and for results of lm-eval together. If there are several folders of runs, the names
    begin with the folder."""
    several = len({folder.folder.resolve() for folder in found if is_run_folder(folder.folder)}) > 1
    runs: list[Run] = []
    untrained: list[Scored] = []
    for folder in found:
        prefix = f"{folder.title}: " if several and is_run_folder(folder.folder) else ""
        untrained += [renamed(scored, prefix) for scored in folder.untrained if scored.path not in paths(untrained)]
        for one in folder.runs:
            scored = [renamed(scored, prefix) for scored in one.scored]
            runs.append(replace(one, name=prefix + one.name, scored=scored))
    untrained = distinct(untrained)
    further: list[str] = []
    if sources:
        untrained += with_ours(sources, [one for folder in found for one in last_results(folder)], further)
    tasks = list(
        dict.fromkeys([*(task for folder in found for task in folder.tasks), *(one.task for one in untrained)])
    )
    made = [
        sections.accuracies(runs, untrained, tasks),
        comparisons.comparisons(runs, untrained, tasks),
        sections.parts_of_tasks(runs, untrained, tasks),
        sections.training(runs),
    ]
    return made, [*(f"{folder.title}: {line}" for folder in found for line in folder.missing), *further]


def distinct(scored: Sequence[Scored]) -> list[Scored]:
    """The same results, in which those of different folders have different names: two may be of a model `bloom`."""
    folders: dict[str, set[Path]] = {}
    for one in scored:
        folders.setdefault(one.name, set()).add(one.path.parent)
    return [renamed(one, f"{one.path.parent.parent}: ") if len(folders[one.name]) > 1 else one for one in scored]


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
        file.write(table_of(part) + "\n")
    columns = [list(column) for column in zip(part.head, *part.rows)]
    columns = [split for title, *cells in columns for split in full(title, cells)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(for_spreadsheet, row) for row in zip(*columns))
    with whole_file(folder / f"{name}.csv") as file:
        file.write(text.getvalue())


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
