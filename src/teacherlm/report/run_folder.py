"""This module reads the folder of a run: its manifests, results and logs, and which of them are missing.

Any of these files may be missing.
"""

from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from teacherlm.core import manifests
from teacherlm.report.lineage import Lineage, is_of_several_sets
from teacherlm.report.scored import Scored, read_results
from teacherlm.report.shown_manifests import read_manifests
from teacherlm.report.training_run import Run, read_run, run_names, with_other_flags
from teacherlm.report.unfinished import failed_jobs, unexplained, unprepared

STAGES = ("prepare", "enhance", "finetune", "evaluate")
"""The subfolders of a run's folder."""


@dataclass
class RunFolder:
    """The content of a run's folder.

    Attributes:
        runs: the finetunings, ordered by name.
        untrained: the results of models that are not checkpoints of a finetuning.
        manifests: (path, manifest) of every stage, ordered by the time at which it began.
        missing: sentences about missing, unfinished and failed work.
    """

    folder: Path
    runs: list[Run]
    untrained: list[Scored]
    manifests: list[tuple[Path, dict[str, Any]]]
    missing: list[str]

    @property
    def title(self) -> str:
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks on which models were scored."""
        return list(dict.fromkeys(scored.task for scored in self.all_scored))

    @property
    def all_scored(self) -> list[Scored]:
        return [*self.untrained, *(scored for run in self.runs for scored in run.checkpoints)]


def is_run_folder(folder: Path) -> bool:
    return any((folder / stage).is_dir() for stage in STAGES)


def read_run_folder(folder: Path) -> RunFolder:
    """Read the files of a run's folder. Files that cannot be read are reported in `missing`; they are no error."""
    missing: list[str] = []
    evaluated = folder / "evaluate"
    untrained = list(read_results(evaluated.glob("*/*.json"), missing))
    runs = [read_run(folder, name, untrained, missing) for name in run_names(folder)]
    runs += [other for run in runs for other in with_other_flags(folder, run, missing)]
    missing[:0] = [*failed_jobs(folder), *unprepared(folder), *unexplained(folder)]
    stages = (*STAGES, *(path.name for path in sorted(folder.glob("evaluate-*"))))
    if not runs:
        missing.append("finetune: no student was finetuned yet")
    if not untrained and not any(run.scored for run in runs):
        missing.append("evaluate: no model was scored yet")
    found = read_manifests(folder, stages, missing)
    add_records(folder, runs, found)
    return RunFolder(folder, runs, untrained, found, missing)


def add_records(folder: Path, runs: list[Run], found: list[tuple[Path, dict[str, Any]]]) -> None:
    """Add to each run what the manifest of its finetuning records.

    A run with several training sets has datasets of other benchmarks, whose manifests lie in the other benchmarks'
    folders (RUNS/BENCHMARK/SAMPLES).
    """
    others: list[tuple[Path, dict[str, Any]]] = []
    if any(is_of_several_sets(manifest) for _, manifest in found):
        here = folder.resolve()
        for other in sorted(here.parent.parent.glob(f"*/{escape(here.name)}")):
            if other != here:
                others += read_manifests(other, STAGES[:2], [])  # the page of the other folder says what is damaged
    lineage = Lineage([*found, *others])
    by_path = dict(found)
    for run in runs:
        run.recorded = lineage.recorded(by_path.get(folder / "finetune" / run.trained / manifests.NAME))
