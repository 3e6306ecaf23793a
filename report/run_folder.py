"""What lies in a run's folder: manifests, results, logs, and what is not there yet. Nothing is needed, all is read."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from teacherlm import manifests
from teacherlm.errors import UserError, one_line
from teacherlm.records import Record, read_records

STAGES = ("prepare", "enhance", "finetune", "evaluate")
"""The folders that a run's folder has."""


@dataclass(frozen=True)
class Scored:
    """One model on one task.

    Attributes:
        name: as the page calls it: `smollm2-135m (untrained)`, `RUN, checkpoint-50`.
        step: of the checkpoint; 0 of the untrained student.
        path: the result's file.
        result: what is in it.
    """

    name: str
    step: int
    path: Path
    result: dict[str, Any]

    @property
    def task(self) -> str:
        return self.result["task"]

    @cached_property
    def samples(self) -> list[Record]:
        """What the model said to each question; empty where the file is gone."""
        path = self.path.with_name(f"{self.path.stem}_samples.jsonl")
        return [record for _, record in read_records(path)] if path.is_file() else []


@dataclass
class Run:
    """A finetuning: its log, and the results of the untrained student and of each checkpoint, by step."""

    name: str
    task_type: str
    log: list[Record]
    scored: list[Scored] = field(default_factory=list)

    @property
    def checkpoints(self) -> list[Scored]:
        return [scored for scored in self.scored if scored.step]


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
    return RunFolder(folder, runs, untrained, read_manifests(folder, STAGES), missing)


def read_manifests(folder: Path, within: Iterable[str]) -> list[tuple[Path, dict[str, Any]]]:
    """(path, manifest) of what is in some folders of a folder, by the time at which it began."""
    paths = sorted({path for name in within for path in folder.glob(f"{name}/**/*{manifests.NAME}")})
    found = [(path, manifests.read_manifest(path)) for path in paths if path.parent != folder / "report"]
    known = [(path, manifest) for path, manifest in found if manifest]
    return sorted(known, key=lambda pair: (pair[1].get("started", ""), str(pair[0])))


def run_names(folder: Path) -> list[str]:
    trained = {path.name for path in (folder / "finetune").glob("*") if path.is_dir() and ".old-" not in path.name}
    scored = {path.parent.name for path in (folder / "evaluate").glob("*/checkpoint-*")}
    return sorted(trained | scored)


def read_run(folder: Path, name: str, untrained: list[Scored], missing: list[str]) -> Run:
    own = folder / "finetune" / name
    log = read_log(own / "log.jsonl", missing)
    about = read_json(own / "run.json") or {}
    run = Run(name, about.get("arguments", {}).get("task_type", ""), log)
    found = list(read_results((folder / "evaluate" / name).glob("checkpoint-*/*.json"), missing))
    before = find_untrained(name, about, untrained)
    run.scored = [*before, *sorted(found, key=lambda scored: scored.step)]
    missing += untrained_or_unscored(folder, run, before)
    return run


def read_log(path: Path, missing: list[str]) -> list[Record]:
    """The lines of a training's log; a torn last one, of a training that was killed or goes on, is left out."""
    found = []
    try:
        for _, record in read_records(path) if path.is_file() else ():
            found.append(record)
    except UserError as error:
        missing.append(f"finetune: {one_line(error)}")
    return [record for record in found if "step" in record]


def read_results(paths: Iterable[Path], missing: list[str]) -> Iterator[Scored]:
    for path in sorted(paths):
        if path.name.startswith(".") or path.name.endswith(manifests.NAME):
            continue
        result = read_json(path)
        if result is None or not {"task", "value", "n", "metric"} <= result.keys():
            missing.append(f"evaluate: {path} cannot be read as a result; remove it and score the model again")
            continue
        place = path.parent.name
        if step := step_of(path.parent):
            yield Scored(f"{path.parent.parent.name}, {place}", step, path, result)
        else:
            yield Scored(f"{place} (untrained)", 0, path, result)


def step_of(checkpoint: Path) -> int:
    """N of a folder checkpoint-N; 0 of any other."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else 0


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def find_untrained(name: str, about: dict[str, Any], untrained: list[Scored]) -> list[Scored]:
    """Results of the student that a run began with: of the same digest, else of the name that the run's begins with."""
    student = about.get("inputs", {}).get("student", {}).get("sha256")
    same = [scored for scored in untrained if student and digest_of_model(scored) == student]
    if not same:
        named = [scored for scored in untrained if name.startswith(f"{scored.path.parent.name}_")]
        longest = max((scored.path.parent.name for scored in named), key=len, default="")
        same = [scored for scored in named if scored.path.parent.name == longest]
    return same


def digest_of_model(scored: Scored) -> str | None:
    manifest = manifests.read_manifest(manifests.manifest_of(scored.path)) or {}
    return manifest.get("inputs", {}).get("model", {}).get("sha256")


# ------------------------------------------------------------------------------------------------- what is not there


def unprepared(folder: Path) -> Iterator[str]:
    if not list((folder / "prepare").glob(f"*{manifests.NAME}")):
        yield "prepare: not done: no prompts and no test set yet"


def unexplained(folder: Path) -> Iterator[str]:
    """What the teachers have not written, and what is not post-processed."""
    for own in sorted(path for path in (folder / "enhance").glob("*") if path.is_dir()):
        for progress in sorted(own.glob(".*.progress")):
            with open(progress, "rb") as file:
                texts = max(0, sum(1 for _ in file) - 1)
            output = progress.name.removeprefix(".").removesuffix(".progress")
            yield f"enhance: {own.name}/{output} is not finished: {texts} texts so far"
        for failures in sorted(own.glob("*.failures.jsonl")):
            listed = [record for _, record in read_records(failures)]
            yield (
                f"enhance: {len(listed)} records have no text in {own.name}/{failures.name.split('.')[0]}.jsonl; "
                f"the first, of line {listed[0].get('line')}: {listed[0].get('reason')}"
            )
        done = [path for path in own.glob(f"*_*.{manifests.NAME}") if "shard-" not in path.name]
        if done and not list(own.glob(f"*/{manifests.NAME}")):
            yield f"post-process: not done for {own.name}: there is no dataset to finetune on"
        elif done and not list(own.glob(f"*_quality.{manifests.NAME}")):
            yield f"quality: not measured for {own.name}; data_prepare.py --post_process does it"


def untrained_or_unscored(folder: Path, run: Run, before: list[Scored]) -> Iterator[str]:
    own = folder / "finetune" / run.name
    if not (own / manifests.NAME).is_file():
        reached = f"it reached step {run.log[-1]['step']}" if run.log else "it has not logged a step"
        yield f"finetune: {run.name} is not finished: {reached}"
    scored = {one.path.parent.name for one in run.checkpoints}
    for path in sorted(own.glob("checkpoint-*"), key=step_of):
        if step_of(path) and path.name not in scored:
            yield f"evaluate: {path.name} of {run.name} is not scored"
    if not before:
        yield f"evaluate: the untrained student of {run.name} is not scored"


def failed_jobs(folder: Path) -> Iterator[str]:
    """What jobs on Slurm said at their end, if it was no good one (see slurm/lib/job.bash)."""
    for state in sorted(folder.glob("chains/*/states/*")):
        said = state.read_text(encoding="utf-8", errors="replace").split("\t")[0]
        if said.startswith("failed") and not state.suffix:
            stage, _, number = state.name.rpartition("-")
            yield f"{stage}: task {number} of {state.parent.parent.name} {said}"
