"""This module reads the folder of a run: its manifests, results and logs, and which of them are missing.

Any of these files may be missing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacherlm.report.scored import Scored, read_results
from teacherlm.report.shown_manifests import read_manifests
from teacherlm.report.training_run import Run, read_run, run_names
from teacherlm.report.unfinished import failed_jobs, unexplained, unprepared

STAGES = ("prepare", "enhance", "finetune", "evaluate")
"""The folders that a run's folder has."""


@dataclass
class RunFolder:
    """A run's folder as it was found.

    Attributes:
        runs: the finetunings, in the order of their names.
        untrained: results of models that are no checkpoints, of finetunings or of none.
        manifests: (path, manifest) of every stage, by the time at which it began.
        missing: what is not there, not finished or failed: a sentence each.
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
        """The names of the tasks that something was scored on."""
        return list(dict.fromkeys(scored.task for scored in self.all_scored))

    @property
    def all_scored(self) -> list[Scored]:
        return [*self.untrained, *(scored for run in self.runs for scored in run.checkpoints)]


def is_run_folder(folder: Path) -> bool:
    return any((folder / stage).is_dir() for stage in STAGES)


def read_run_folder(folder: Path) -> RunFolder:
    """Read all that there is; what cannot be read is said in `missing`, and no reason to stop."""
    missing: list[str] = []
    evaluated = folder / "evaluate"
    untrained = list(read_results(evaluated.glob("*/*.json"), missing))
    runs = [read_run(folder, name, untrained, missing) for name in run_names(folder)]
    missing[:0] = [*failed_jobs(folder), *unprepared(folder), *unexplained(folder)]
    if not runs:
        missing.append("finetune: no student was finetuned yet")
    if not untrained and not any(run.scored for run in runs):
        missing.append("evaluate: no model was scored yet")
    return RunFolder(folder, runs, untrained, read_manifests(folder, STAGES, missing), missing)
