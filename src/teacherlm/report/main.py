"""Make the page of a run's folder: accuracies, training, comparisons, the explanations and their quality, the stages.

A run's folder is the folder of chains (runs/creak/all) or a folder with ATLAS experiments (DATA_DIR/experiments).

The page is FOLDER/report/index.html, a single file that needs no server and no network. A folder whose files have not
changed since then is skipped. An unfinished or failed run also gets a page, which lists what is missing.
"""

import hashlib
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import whole_file
from teacherlm.core.flags import LIST_MISSING, flag, parse
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.places import runs_folder
from teacherlm.core.stage_run import StageRun
from teacherlm.core.terminal import printable
from teacherlm.report import comparisons, sections
from teacherlm.report.atlas_results import atlas_sections, is_atlas_folder, read_experiments
from teacherlm.report.measures import measures
from teacherlm.report.page import render
from teacherlm.report.run_folder import STAGES, RunFolder, is_run_folder, read_run_folder
from teacherlm.report.sample_browser import browse
from teacherlm.report.shown_manifests import read_manifests
from teacherlm.report.text_tables import said
from teacherlm.report.unfinished import failed_jobs

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class ReportFlags:
    """The runs that get a page."""

    folders: tuple[Path, ...] = flag((), positional=True, help="folders of runs (default: all under --runs)")
    runs: Path = flag(factory=runs_folder, help="folder of all runs (default: $RUNS, or runs)")
    benchmark: str | None = flag(None, help="under --runs, only the runs of this benchmark")
    samples: str | None = flag(None, help="under --runs, only the runs named all or limit-N")
    open: bool = flag(False, help="open the pages in the browser")
    list_missing: bool = flag(False, help=LIST_MISSING)


def main() -> None:
    flags = parse(ReportFlags, __doc__, example="teacherlm report runs/sample/limit-48 --open")
    folders = flags.folders or find_folders(flags.runs, flags.benchmark, flags.samples)
    if flags.list_missing:
        if not all(map(has_page, folders)):
            print(0)
        return
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; a run's folder, such as runs/creak/all, was expected")
        page = write_page(folder)
        if flags.open:
            webbrowser.open(page.resolve().as_uri())


def find_folders(runs: Path, benchmark: str | None, samples: str | None) -> list[Path]:
    """The folders of runs under RUNS.

    Raises:
        UserError: there are none.
    """
    found = [folder for folder in sorted(runs.glob(f"{benchmark or '*'}/{samples or '*'}")) if is_run_folder(folder)]
    if not benchmark:
        found += [folder for folder in sorted(runs.glob("*")) if is_atlas_folder(folder)]
    if not found:
        place = runs / (benchmark or "") / (samples or "")
        raise UserError(f"{place}: there is no run's folder; make one with make demo, or give one with RUN=FOLDER")
    return found


def page_of_folder(folder: Path) -> Path:
    return folder / "report" / "index.html"


def has_page(folder: Path) -> bool:
    """Whether a folder's page was made from the files that are there now."""
    run = StageRun("report", page_of_folder(folder).parent)
    run.compare({}, describe_inputs(folder, run.known))
    return run.is_done


def write_page(folder: Path) -> Path:
    """Write a folder's page, unless it was already made from the same files."""
    page = page_of_folder(folder)
    require_writable(page.parent)
    require_file_place(page)
    with StageRun("report", page.parent, locks=[page]) as run:
        make_page(run, folder, page)
    return page


def make_page(run: StageRun, folder: Path, page: Path) -> None:
    run.compare({}, describe_inputs(folder, run.known))
    if run.is_done:
        run.say_done(because=f"{printable(str(page))} was made from the same files")
        return
    found = read_run_folder(folder)
    html, counts, tables = atlas_page(found) if is_atlas_folder(folder) else page_of(found)
    with whole_file(page) as file:
        file.writelines(html)
    run.finish({"page": page}, counts)
    missing = counts["missing"]
    what = (
        f"; {missing} {'thing is' if missing == 1 else 'things are'} missing, see its first section" if missing else ""
    )
    print(tables, end="")
    print(f"report: {printable(str(page))}{what}")


def describe_inputs(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """The digests of a page's inputs: the run's files without weights and datasets, its failed jobs, and this code.

    The states of jobs are no inputs themselves: they have times, and one is that of the job that makes the page.
    """
    patterns = ["prepare*/*.json*", "enhance/*/*.json*", "enhance/*/.*.progress", "enhance/*/*/manifest.json"]
    patterns += ["finetune/*/*.json*", "evaluate*/*/*.json*", "evaluate*/*/*/*.json*"]
    if is_atlas_folder(folder):
        patterns = ["*/*.json*", "*/*/*.json*"]
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    files = sorted(path for path in found if path.parent != folder / "report")
    code = sorted(path for path in HERE.iterdir() if path.suffix in (".py", ".js", ".css", ".html"))
    jobs = "\n".join(failed_jobs(folder))
    return {
        "run": manifests.describe(folder, known.get("run"), files),
        "jobs": {"sha256": hashlib.sha256(jobs.encode("utf-8", "surrogateescape")).hexdigest()},
        "code": manifests.describe(HERE, known.get("code"), code),
    }


def page_of(run: RunFolder) -> tuple[Iterator[str], dict[str, int], str]:
    """The page of a chain's folder, the counts for its manifest, and the tables with replicates for the terminal."""
    browser = browse(run)
    made = [
        sections.accuracies(run.runs, run.untrained, run.tasks),
        measures(run.runs, run.untrained, run.tasks),
        comparisons.comparisons(run.runs, run.untrained, run.tasks),
        sections.parts_of_tasks(run.runs, run.untrained, run.tasks),
        sections.training(run.runs),
        sections.quality(run),
        sections.stages(run.manifests, run.folder),
    ]
    missing = run.missing
    if not any((run.folder / stage).is_dir() for stage in STAGES):
        missing = ["everything: no stage has written a file here"]
    html = render(run.title, made, missing, browser if browser["samples"] else None)
    return html, {"samples": len(browser["samples"]), "missing": len(missing)}, said(made)


def atlas_page(run: RunFolder) -> tuple[Iterator[str], dict[str, int], str]:
    """The page of a folder with ATLAS experiments, the counts for its manifest, and an empty text: no replicates."""
    missing: list[str] = []
    experiments = read_experiments(run.folder, missing)
    made = [*atlas_sections(experiments), sections.stages(read_manifests(run.folder, ("*",), missing), run.folder)]
    return render(run.title, made, missing, None), {"experiments": len(experiments), "missing": len(missing)}, ""
