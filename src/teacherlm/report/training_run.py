"""A finetuning in a run's folder: its log, and the results of its checkpoints and of its untrained student."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

from teacherlm.catalog.text_parts import PARTS
from teacherlm.core import manifests
from teacherlm.core.errors import UserError, one_line
from teacherlm.core.json_files import load_object
from teacherlm.core.records import Record, read_records
from teacherlm.core.shapes import flaw_of_shape
from teacherlm.report.lineage import Recorded
from teacherlm.report.scored import Scored, read_results, step_of
from teacherlm.report.shown_manifests import checked_manifest

ABOUT = {"arguments?": {"task_type?": str, "chat?": bool}, "inputs?": {"student?": {"sha256?": str}}}
"""The shape of the fields of a run.json that are read."""
LOG = {
    "step": int,
    **dict.fromkeys(("steps?", "epoch?", "loss?", "learning_rate?", "reader_loss?", "retriever_loss?"), float),
    **dict.fromkeys((f"{part}_loss?" for part in PARTS), float),
    "learning_rates?": [float],
}
LOGGED = {name.removesuffix("?") for name in LOG}


@dataclass
class Run:
    """A finetuning: its log, and the results of the untrained student and of each checkpoint, by step.

    Attributes:
        trained: the name of the finetuning's folder.
        evaluated: the name of the folder with the scores: `evaluate`, or evaluate-DIGEST for scores with further flags.
        recorded: what the manifest of the finetuning records, or None if it is not finished.
    """

    name: str
    task_type: str
    log: list[Record]
    scored: list[Scored] = field(default_factory=list)
    trained: str = ""
    evaluated: str = "evaluate"
    recorded: Recorded | None = None

    @property
    def checkpoints(self) -> list[Scored]:
        return [scored for scored in self.scored if scored.step]


def run_names(folder: Path) -> list[str]:
    trained = {path.name for path in (folder / "finetune").glob("*") if path.is_dir() and ".old-" not in path.name}
    scored = {path.parent.name for path in (folder / "evaluate").glob("*/checkpoint-*")}
    return sorted(trained | scored)


def with_other_flags(folder: Path, run: Run, missing: list[str]) -> Iterator[Run]:
    """The same finetuning with the scores of each evaluation that had further flags (EVALUATE_FLAGS)."""
    for evaluated in sorted(folder.glob("evaluate-*")):
        found = list(read_results((evaluated / run.name).glob("checkpoint-*/*.json"), missing))
        if found:
            before = list(read_results(evaluated.glob("*/*.json"), missing))
            scored = [*find_untrained(run.name, read_about(folder / "finetune" / run.name / "run.json", []), before)]
            scored += sorted(found, key=lambda one: one.step)
            named = [replace(one, name=f"{one.name}, {evaluated.name}") for one in scored]
            yield Run(f"{run.name}, {evaluated.name}", run.task_type, [], named, run.trained, evaluated.name)


def read_run(folder: Path, name: str, untrained: list[Scored], missing: list[str]) -> Run:
    run_folder = folder / "finetune" / name
    log = read_log(run_folder / "log.jsonl", missing)
    about = read_about(run_folder / "run.json", missing)
    run = Run(name, about.get("arguments", {}).get("task_type", ""), log, trained=name)
    found = list(read_results((folder / "evaluate" / name).glob("checkpoint-*/*.json"), missing))
    before = find_untrained(name, about, untrained)
    run.scored = [*before, *sorted(found, key=lambda scored: scored.step)]
    missing += untrained_or_unscored(folder, run, before)
    return run


def read_about(path: Path, missing: list[str]) -> dict[str, Any]:
    """The content of a finetuning's run.json, or {} if it is missing or cannot be read."""
    try:
        about = load_object(path) if path.is_file() else {}
        if flaw := flaw_of_shape(about, ABOUT):
            raise ValueError(flaw)
    except (OSError, ValueError) as error:
        missing.append(f"finetune: {path}: {one_line(error)}")
        return {}
    return about


def read_log(path: Path, missing: list[str]) -> list[Record]:
    """The lines of a training log up to the first one that cannot be read, with only the fields that the report shows.

    A training that was killed or is running can leave an incomplete last line.
    """
    found = []
    try:
        for number, record in read_records(path) if path.is_file() else ():
            if "step" not in record:
                continue
            if flaw := flaw_of_shape(record, LOG):
                raise UserError(f"{path}, line {number}: this is not a line of a training log: {flaw}")
            found.append({name: record[name] for name in LOGGED & record.keys()})
    except UserError as error:
        missing.append(f"finetune: {one_line(error)}")
    return found


def find_untrained(name: str, about: dict[str, Any], untrained: list[Scored]) -> list[Scored]:
    """The results of a run's untrained student, found by its digest or else by the beginning of the run's name.

    Those of a chat student are from conversations, and those of another student from plain texts.
    """
    is_chat = bool(about.get("arguments", {}).get("chat"))
    untrained = [scored for scored in untrained if bool(scored.result.get("chat")) == is_chat]
    student = about.get("inputs", {}).get("student", {}).get("sha256")
    same = [scored for scored in untrained if student and digest_of_model(scored) == student]
    if not same:
        named = [scored for scored in untrained if name.startswith(f"{scored.path.parent.name}_")]
        longest = max((scored.path.parent.name for scored in named), key=len, default="")
        same = [scored for scored in named if scored.path.parent.name == longest]
    return same


def digest_of_model(scored: Scored) -> str | None:
    try:
        manifest = checked_manifest(manifests.manifest_of(scored.path))
    except (OSError, ValueError):  # read_manifests reports it
        return None
    digest: str | None = manifest.get("inputs", {}).get("model", {}).get("sha256")
    return digest


def untrained_or_unscored(folder: Path, run: Run, before: list[Scored]) -> Iterator[str]:
    run_folder = folder / "finetune" / run.name
    if not (run_folder / manifests.NAME).is_file():
        reached = f"it reached step {run.log[-1]['step']}" if run.log else "it has not logged a step"
        yield f"finetune: {run.name} is not finished: {reached}"
    if not run.checkpoints and any(folder.glob(f"evaluate-*/{escape(run.name)}")):
        return  # it is scored with other flags
    scored = {one.path.parent.name for one in run.checkpoints}
    for path in sorted(run_folder.glob("checkpoint-*"), key=step_of):
        if step_of(path) and path.name not in scored:
            yield f"evaluate: {path.name} of {run.name} is not scored"
    if not before:
        yield f"evaluate: the untrained student of {run.name} is not scored"
