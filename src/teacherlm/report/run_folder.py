"""What lies in a run's folder: manifests, results, logs, and what is not there yet. Any of these files may be missing.

The files may be anybody's. What is read is held against a shape, so that the rest of the report can rely on it; a file
that does not fit is said in `missing` and left out.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from teacherlm.core import manifests
from teacherlm.core.errors import UserError, one_line
from teacherlm.core.json_files import load_object
from teacherlm.core.names import file_name
from teacherlm.core.opening import open_ordinary
from teacherlm.core.records import Record, read_records
from teacherlm.core.redaction import redacted_command, without_named
from teacherlm.core.results import read_result
from teacherlm.core.shapes import LONG_TEXT, flaw_of_shape
from teacherlm.core.trees import files_below

STAGES = ("prepare", "enhance", "finetune", "evaluate")
"""The folders that a run's folder has."""

NUMBER = (float, None)
DESCRIBED = {"path": str, "sha256": str}
MANIFEST = {
    "stage": str,
    "outputs": {str: {**DESCRIBED, "files?": {str: dict}}},
    "inputs?": {str: DESCRIBED},
    "arguments?": dict,
    "versions?": {str: (str, None)},
    "image?": (str, None),
    "host?": (str, None),
    "command?": [LONG_TEXT],
    "started?": str,
    "finished?": str,
}
COUNTS = {
    **dict.fromkeys(("records?", "samples?", "questions?", "train?", "steps?", "processes?", "dropped?"), int),
    **dict.fromkeys(("prompt_tokens?", "new_tokens?"), int),
    "seconds?": float,
    "dropped_for?": {str: int},
}
"""Of a manifest's `counts`, what is shown of any stage."""
ABOUT = {"arguments?": {"task_type?": str}, "inputs?": {"student?": {"sha256?": str}}}
"""Of a run.json, what is read of it."""
LOG = {
    "step": int,
    **dict.fromkeys(("steps?", "epoch?", "loss?", "learning_rate?", "reader_loss?", "retriever_loss?"), float),
    "learning_rates?": [float],
}
SAMPLE = {
    "doc_id": (int, str),
    "prompt": LONG_TEXT,
    "task?": str,
    "choice?": str,
    "loglikelihoods?": {str: float},
}

Question = tuple[Any, ...]
"""What makes two samples the same question: task, number, and a digest of the prompt."""


class Answers(NamedTuple):
    """What a model said to a task's questions.

    Attributes:
        right: question -> whether the model is right, where the metric says right or wrong of each sample.
        chance: the accuracy of who draws a choice blindly; None where there are no choices.
    """

    right: dict[Question, bool]
    chance: float | None


@dataclass(frozen=True)
class Scored:
    """One model on one task.

    Attributes:
        name: as the page calls it: `smollm2-135m (untrained)`, `RUN, checkpoint-50`.
        step: of the checkpoint; 0 of the untrained student.
        path: the result's file.
        result: what is in it.
        missing: where it is said that the samples cannot be read.
    """

    name: str
    step: int
    path: Path
    result: dict[str, Any] = field(repr=False)
    missing: list[str] = field(repr=False, compare=False)

    @property
    def task(self) -> str:
        return str(self.result["task"])

    def samples(self) -> Iterator[Record]:
        """What the model said to each question, one at a time; nothing where the file is gone."""
        path = self.path.with_name(f"{self.path.stem}_samples.jsonl")
        return read_shaped(path, SAMPLE, "sample of an evaluation", "evaluate", self.missing)

    @cached_property
    def answers(self) -> Answers:
        metric, right, choices, chance = self.result["metric"], {}, 0, 0.0
        for record in self.samples():
            question = (record.get("task"), record["doc_id"], digest_of(record["prompt"]))
            value = record.get(metric)
            if isinstance(value, int | float) and value in (0, 1):
                right[question] = value == 1
            if count := len(record.get("loglikelihoods", ())):
                choices, chance = choices + 1, chance + 1 / count
        return Answers(right, chance / choices if choices else None)


def digest_of(text: str) -> bytes:
    """Stands for a text, which may be long, where texts are only compared."""
    return blake2b(text.encode(), digest_size=8).digest()


def say(missing: list[str], said: str) -> None:
    """Put a sentence into `missing`, once."""
    if said not in missing:
        missing.append(said)


def read_shaped(path: Path, shape: dict[str, Any], what: str, stage: str, missing: list[str]) -> Iterator[Record]:
    """The records of a stage's file that have a shape; one that has not is said in `missing`, and ends them.

    Args:
        what: a record is, for the sentence.
    """
    try:
        for number, record in read_records(path) if path.is_file() else ():
            if flaw := flaw_of_shape(record, shape):
                raise UserError(f"{path}, line {number}: no {what}: {flaw}")
            yield record
    except UserError as error:
        say(missing, f"{stage}: {one_line(error)}")


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
    return RunFolder(folder, runs, untrained, read_manifests(folder, STAGES, missing), missing)


def read_manifests(folder: Path, within: Iterable[str], missing: list[str]) -> list[tuple[Path, dict[str, Any]]]:
    """(path, manifest) of what is in some folders of a folder, by the time at which it began."""
    paths = set()
    for name in within:
        try:
            paths |= {path for path in files_below(folder / name) if path.name.endswith(manifests.NAME)}
        except UserError as error:
            missing.append(f"manifest: {one_line(error)}")
    found = []
    for path in sorted(paths):
        if path.parent == folder / "report":
            continue
        try:
            found.append((path, checked_manifest(path)))
        except (OSError, ValueError) as error:
            missing.append(f"manifest: {path}: {one_line(error)}; run the stage again")
    return sorted(found, key=lambda pair: (pair[1].get("started", ""), str(pair[0])))


def checked_manifest(path: Path) -> dict[str, Any]:
    """A manifest of which the fields that the report shows are what they should be, without secrets.

    An earlier version wrote commands as they were given.

    Raises:
        OSError: it cannot be read.
        ValueError: a field is something else.
    """
    manifest = load_object(path)
    flaw = flaw_of_shape(manifest, MANIFEST)
    if not flaw and "counts" in manifest:
        flaw = flaw_of_shape(manifest["counts"], COUNTS, "counts")
    if not flaw and manifest["stage"] == "quality":
        flaw = flaw_of_shape(manifest.get("counts"), {"records": int}, "counts")
        flaw = flaw or flaw_of_shape(manifest["counts"], {str: (float, {str: (int, None)})}, "counts")
    if flaw:
        raise ValueError(flaw)
    manifest["command"] = redacted_command(manifest.get("command", []))
    manifest["arguments"] = without_named(manifest.get("arguments", {}))
    return manifest


def run_names(folder: Path) -> list[str]:
    trained = {path.name for path in (folder / "finetune").glob("*") if path.is_dir() and ".old-" not in path.name}
    scored = {path.parent.name for path in (folder / "evaluate").glob("*/checkpoint-*")}
    return sorted(trained | scored)


def read_run(folder: Path, name: str, untrained: list[Scored], missing: list[str]) -> Run:
    own = folder / "finetune" / name
    log = read_log(own / "log.jsonl", missing)
    about = read_about(own / "run.json", missing)
    run = Run(name, about.get("arguments", {}).get("task_type", ""), log)
    found = list(read_results((folder / "evaluate" / name).glob("checkpoint-*/*.json"), missing))
    before = find_untrained(name, about, untrained)
    run.scored = [*before, *sorted(found, key=lambda scored: scored.step)]
    missing += untrained_or_unscored(folder, run, before)
    return run


def read_about(path: Path, missing: list[str]) -> dict[str, Any]:
    """What a run.json says of its finetuning; nothing where there is none."""
    try:
        about = load_object(path) if path.is_file() else {}
        if flaw := flaw_of_shape(about, ABOUT):
            raise ValueError(flaw)
    except (OSError, ValueError) as error:
        missing.append(f"finetune: {path}: {one_line(error)}")
        return {}
    return about


def read_log(path: Path, missing: list[str]) -> list[Record]:
    """The lines of a training's log; a torn last one, of a training that was killed or goes on, is left out.

    Of each line what the report shows is kept.
    """
    found = []
    try:
        for number, record in read_records(path) if path.is_file() else ():
            if "step" not in record:
                continue
            if flaw := flaw_of_shape(record, LOG):
                raise UserError(f"{path}, line {number}: no line of a training's log: {flaw}")
            found.append({name: record[name] for name in LOGGED & record.keys()})
    except UserError as error:
        missing.append(f"finetune: {one_line(error)}")
    return found


LOGGED = {name.removesuffix("?") for name in LOG}


def read_results(paths: Iterable[Path], missing: list[str]) -> Iterator[Scored]:
    for path in sorted(paths):
        if path.name.startswith(".") or path.name.endswith(manifests.NAME):
            continue
        try:
            result = read_result(path)
            if file_name(result["task"]) != path.stem:  # tables are named after it
                raise ValueError(f"task: a result of this name is of another task, found {result['task']!r:.60}")
        except (OSError, ValueError) as error:
            missing.append(
                f"evaluate: {path} cannot be read as a result ({one_line(error)}); remove it and score the model again"
            )
            continue
        place = path.parent.name
        if step := step_of(path.parent):
            yield Scored(f"{path.parent.parent.name}, {place}", step, path, result, missing)
        else:
            yield Scored(f"{place} (untrained)", 0, path, result, missing)


def step_of(checkpoint: Path) -> int:
    """N of a folder checkpoint-N; 0 of any other."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else 0


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
    try:
        manifest = checked_manifest(manifests.manifest_of(scored.path))
    except (OSError, ValueError):  # read_manifests says so
        return None
    digest: str | None = manifest.get("inputs", {}).get("model", {}).get("sha256")
    return digest


# ------------------------------------------------------------------------------------------------- what is not there


def unprepared(folder: Path) -> Iterator[str]:
    if not list((folder / "prepare").glob(f"*{manifests.NAME}")):
        yield "prepare: not done: no prompts and no test set yet"


def unexplained(folder: Path) -> Iterator[str]:
    """What the teachers have not written, and what is not post-processed."""
    for own in sorted(path for path in (folder / "enhance").glob("*") if path.is_dir()):
        for progress in sorted(own.glob(".*.progress")):
            try:
                texts = max(0, count_lines(progress) - 1)
            except (OSError, ValueError) as error:
                yield f"enhance: {progress}: {one_line(error)}"
                continue
            output = progress.name.removeprefix(".").removesuffix(".progress")
            yield f"enhance: {own.name}/{output} is not finished: {texts} texts so far"
        for failures in sorted(own.glob("*.failures.jsonl")):
            try:
                listed = read_records(failures)
                _, first = next(listed)
                count = 1 + sum(1 for _ in listed)
            except UserError as error:
                yield f"enhance: {one_line(error)}"
                continue
            yield (
                f"enhance: {count} records have no text in {own.name}/{failures.name.split('.')[0]}.jsonl; "
                f"the first, of line {first.get('line')}: {first.get('reason')}"
            )
        done = [path for path in own.glob(f"*_*.{manifests.NAME}") if "shard-" not in path.name]
        if done and not list(own.glob(f"*/{manifests.NAME}")):
            yield f"post-process: not done for {own.name}: there is no dataset to finetune on"
        elif done and not list(own.glob(f"*_quality.{manifests.NAME}")):
            yield f"quality: not measured for {own.name}; data_prepare.py --post_process does it"


def count_lines(path: Path) -> int:
    """Line breaks in a file, of which a line may be of any length."""
    with open_ordinary(path) as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


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
    """What jobs on Slurm said at their end, if it was no good one (see slurm/job.sh)."""
    for state in sorted(folder.glob("chains/*/states/*")):
        try:
            with open_ordinary(state) as file:
                said = file.read(1000).decode("utf-8", "replace").split("\t")[0]
        except (OSError, ValueError) as error:
            yield f"chain: {state}: {one_line(error)}"
            continue
        if said.startswith("failed") and not state.suffix:
            stage, _, number = state.name.rpartition("-")
            yield f"{stage}: task {number} of {state.parent.parent.name} {said}"
