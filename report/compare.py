"""One page that compares runs, and the same tables as Markdown and CSV, for a paper.

A run is named by its folder (runs/creak/all), by the end of it under --runs (creak/all, creak), by the name of a
finetuning in it (smollm2-135m_text_seed0), or is a folder with ATLAS's experiments. Of each finetuning the last
checkpoint is compared, as nothing of the test questions has chosen it.
"""

import argparse
import csv
import io
import os
import re
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import sections
from atlas_results import atlas_sections, is_atlas_folder, read_experiments
from page import Cell, Part, Section, render
from run_folder import Run, RunFolder, Scored, is_run_folder, read_run_folder

from teacherlm import tables
from teacherlm.errors import Parser, UserError, run
from teacherlm.files import require_writable, whole_file
from teacherlm.lock import one_writer


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="runs: folders, ends of their paths, or names of finetunings")
    parser.add_argument("--runs", type=Path, default=Path(os.environ.get("RUNS") or "runs"), help="(default: $RUNS)")
    parser.add_argument("--output", type=Path, help="folder of the page and tables (default: RUNS/compare/NAMES)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    args = parser.parse_args()
    found = [folder for name in args.names for folder in find(args.runs, name)]
    output = args.output or args.runs / "compare" / "_".join(re.sub(r"[^\w.-]+", "-", name) for name in args.names)
    require_writable(output)
    atlas = [folder for folder in found if is_atlas_folder(folder.folder)]
    if atlas and len(atlas) < len(found):
        raise UserError(
            "runs of the chains and ATLAS's experiments do not compare: their questions are asked otherwise"
        )
    made, missing = compare_atlas(atlas) if atlas else compare_runs(found)
    page = output / "index.html"
    with one_writer(page):  # the tables beside it too
        with whole_file(page) as file:
            file.write(render(" and ".join(args.names), made, missing, None))
        for section in made:
            for part in section.parts:
                if part.rows:
                    write_tables(output, part.name, part)
    print(f"compare: {page}, its tables beside it as Markdown and CSV")
    if args.open:
        webbrowser.open(page.resolve().as_uri())


def find(runs: Path, name: str) -> list[RunFolder]:
    """The runs' folders that a name means; of the name of a finetuning, with that one alone.

    Raises:
        UserError: it means nothing.
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
        raise UserError(f"{name}: no such run under {runs}; folders and finetunings of runs are meant, as creak/all")
    return [only(read_run_folder(folder), name) for folder in holding]


def only(found: RunFolder, name: str) -> RunFolder:
    """A folder with one finetuning, or one untrained model, of it."""
    runs = [one for one in found.runs if one.name == name]
    kept = [scored for one in runs for scored in one.scored if not scored.step]
    kept = kept or [scored for scored in found.untrained if scored.path.parent.name == name]
    return RunFolder(found.folder, runs, kept, found.manifests, [said for said in found.missing if name in said])


def compare_runs(found: Sequence[RunFolder]) -> tuple[list[Section], list[str]]:
    """Sections of all runs together; where several folders are compared, names tell which."""
    several = len({folder.folder.resolve() for folder in found}) > 1
    runs: list[Run] = []
    untrained: list[Scored] = []
    for folder in found:
        prefix = f"{folder.title}: " if several else ""
        untrained += [renamed(scored, prefix) for scored in folder.untrained if scored.path not in paths(untrained)]
        for one in folder.runs:
            scored = [renamed(scored, prefix) for scored in one.scored]
            runs.append(Run(prefix + one.name, one.task_type, one.log, scored))
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
    """NAME.md with the figures as the page shows them, NAME.csv with all their digits."""
    with whole_file(folder / f"{name}.md") as file:
        file.write(tables.table([part.head, *([shown(cell) for cell in row] for row in part.rows)]) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell for title in part.head for cell in head_of(title)])
    for row in part.rows:
        writer.writerow([value for title, cell in zip(part.head, row) for value in full(title, cell)])
    with whole_file(folder / f"{name}.csv") as file:
        file.write(text.getvalue())


def shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}" if cell == 0 or abs(cell) >= 0.0005 else f"{cell:.1e}"
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        return " - ".join(map(shown, cell))
    return "-" if cell is None else str(cell).replace("|", "\\|")


def head_of(title: str) -> list[str]:
    """An interval is two columns of a CSV file."""
    return [f"{title}, low", f"{title}, high"] if "interval" in title else [title]


def full(title: str, cell: Cell) -> list[str | int | float]:
    if "interval" in title:
        return list(cell) if cell is not None else ["", ""]
    return ["" if cell is None else cell]


if __name__ == "__main__":
    run(main)
