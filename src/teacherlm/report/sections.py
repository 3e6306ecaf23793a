"""The sections of a page: accuracies, training, comparisons, quality, stages."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from teacherlm.catalog.text_parts import PARTS
from teacherlm.core import manifests
from teacherlm.core.limits import PAGE_CODE_CHARACTERS, PAGE_POINTS
from teacherlm.core.terminal import LONGEST, cut, plural
from teacherlm.report.figures import Line, draw
from teacherlm.report.page import Cell, Part, Section
from teacherlm.report.replicates import (
    Model,
    checkpoints_by_epoch,
    final_models,
    group_name,
    join,
    members_of,
    replicates,
)
from teacherlm.report.run_folder import RunFolder
from teacherlm.report.scored import Scored
from teacherlm.report.table import epoch_of, mean_loss
from teacherlm.report.training_run import Run

INTERVAL = "95 % interval"
"""The header of a column of intervals."""


# --------------------------------------------------------------------------------------------------------- accuracies


def accuracies(runs: Sequence[Run], untrained: Sequence[Scored], tasks: Iterable[str]) -> Section:
    """For each task, the accuracy of every model with its interval: a chart over epochs, and a table."""
    groups = replicates(runs)
    parts = []
    for task in tasks:
        rows: list[Sequence[Cell]] = [row(scored, "0") for scored in untrained if scored.task == task]
        members: set[int] = set()
        for group in groups:
            found, below = checkpoint_rows(group, task)
            members |= {len(rows) + place for place in below}
            rows += found
        if rows:
            metric = next(scored.result["metric"] for scored in every(runs, untrained) if scored.task == task)
            words = (
                f"{metric} on the test questions of {task}, with Wilson's intervals. The loss is the mean since the "
                "row above."
            )
            words = f"{words} {OF_SEEDS}" if members else words
            head = ("model", "epoch", "questions", metric, INTERVAL, "loss")
            chart = curve(groups, task, metric)
            parts.append(Part(task, words, chart, head, rows, f"accuracy-{task}", members=frozenset(members)))
    return Section("accuracy", "Accuracy", parts)


OF_SEEDS = (
    "A row of several seeds is their mean, with the 95 % interval of 10,000 resamples of seeds and questions; below it "
    "is each seed."
)


def every(runs: Sequence[Run], untrained: Sequence[Scored]) -> list[Scored]:
    return [*untrained, *(scored for run in runs for scored in run.checkpoints)]


def row(scored: Model, epoch: str, loss: float | None = None) -> Sequence[Cell]:
    result = scored.result
    return (scored.name, epoch, result["n"], result["value"], result.get("interval_95"), loss)


def checkpoint_rows(group: Sequence[Run], task: str) -> tuple[list[Sequence[Cell]], set[int]]:
    """The rows of the checkpoints of replicates, and the numbers of those rows that are single seeds of the row above.

    A run without replicates has one row per checkpoint. The loss of several seeds is the mean of theirs.
    """
    rows: list[Sequence[Cell]] = []
    members: set[int] = set()
    shown = {one.path: (epoch, loss) for run in group for one, epoch, loss in epochs_and_losses(run, task)}
    for epoch, together in checkpoints_by_epoch(group, task).items():
        for model in join(group, together, epoch):
            if isinstance(model, Scored):
                rows.append(row(model, *shown[model.path]))
                continue
            of_members = [shown[one.path] for one in model.members]
            losses = [loss for _, loss in of_members if loss is not None]
            rows.append(row(model, of_members[0][0], sum(losses) / len(losses) if losses else None))
            members |= {len(rows) + place for place in range(len(of_members))}
            rows += [row(one, *shown[one.path]) for one in model.members]
    return rows, members


def epochs_and_losses(run: Run, task: str) -> Iterator[tuple[Scored, str, float | None]]:
    """Each checkpoint's result, its epoch as a text, and the mean training loss since the checkpoint before."""
    before = 0
    for scored in run.checkpoints:
        if scored.task == task:
            epoch = epoch_of(run.log, scored.step)
            yield scored, "-" if epoch is None else f"{epoch:g}", mean_loss(run.log, before, scored.step)
            before = scored.step


def curve(groups: Sequence[Sequence[Run]], task: str, metric: str) -> str:
    """A chart of accuracy over epochs, with a line per run or replicates, or an empty text if there are too few
    intervals."""
    lines = []
    for group in groups:
        placed = [(epoch, result) for epoch, result in points_of(group, task) if result.get("interval_95")]
        if len(placed) > 1:
            values = [result["value"] for _, result in placed]
            below = [max(0.0, result["value"] - result["interval_95"][0]) for _, result in placed]
            above = [max(0.0, result["interval_95"][1] - result["value"]) for _, result in placed]
            name = group[0].name if len(group) == 1 else f"{group_name(group)} ({len(group)} seeds)"
            lines.append(Line(name, [epoch for epoch, _ in placed], values, below, above))
    runs = [run for group in groups for run in group]
    return draw(lines, "epoch", f"{metric} on {task}", chance_of(runs, task)) if lines else ""


def points_of(group: Sequence[Run], task: str) -> Iterator[tuple[float, dict[str, Any]]]:
    """(epoch, result) of the untrained student and of each checkpoint whose epoch is known, joined over the seeds.

    Of results that cannot be joined, the first has a point.
    """
    before = [scored for scored in group[0].scored if not scored.step and scored.task == task]
    epochs = {scored.path: epoch_of(run.log, scored.step) for run in group for scored in run.scored}
    models = [*before, *(join(group, found, name)[0] for name, found in checkpoints_by_epoch(group, task).items())]
    for model in models:
        epoch = epochs[members_of(model)[0].path]
        if epoch is not None:
            yield epoch, model.result


def chance_of(runs: Sequence[Run], task: str) -> float | None:
    """The accuracy of random choices, or None if it is not known."""
    found = (scored.answers.chance for run in runs for scored in run.scored if scored.task == task)
    return next((chance for chance in found if chance is not None), None)


LOGGED = {"loss": "training loss", "reader_loss": "reader's loss", "retriever_loss": "retriever's loss"}
LOGGED |= {f"{part}_loss": f"loss of the {part}" for part in PARTS}
LOGGED |= {"learning_rate": "learning rate"}


def training(runs: Sequence[Run]) -> Section:
    """Loss and learning rate over steps, with a line per run."""
    logged = [run for run in runs if run.log]
    parts = []
    for name, title in LOGGED.items():
        lines = [points(run, name) for run in logged if any(name in record for record in run.log)]
        if lines:
            parts.append(Part(title.capitalize(), picture=draw(lines, "step", title)))
    return Section("training", "Training", parts)


def points(run: Run, name: str) -> Line:
    """The logged values of a name. A long log is thinned out evenly; its last value is kept."""
    records = [record for record in run.log if name in record]
    records = [*records[: -1 : -(-len(records) // PAGE_POINTS)], records[-1]]
    return Line(run.name, [record["step"] for record in records], [record[name] for record in records])


def parts_of_tasks(runs: Sequence[Run], untrained: Sequence[Scored], tasks: Iterable[str]) -> Section:
    """For tasks that consist of tasks (MMLU), the accuracies of categories and subjects."""
    parts = []
    for task in tasks:
        models: list[Model] = [scored for scored in untrained if scored.task == task]
        models += [model for group in replicates(runs) for model in final_models(group, task)]
        models = [model for model in models if model.result.get("tasks")]
        for title, key in (("categories", "groups"), ("subjects", "tasks")):
            values = [(scored.name, named_parts(scored.result.get(key, ()))) for scored in models]
            names = list(dict.fromkeys(name for _, found in values for name in found))
            if names:
                head = (title, *(name for name, _ in values))
                rows = [(name, *(found.get(name) for _, found in values)) for name in names]
                parts.append(Part(f"{task}: {title}", head=head, rows=rows, name=f"{key}-{task}"))
    return Section("categories", "Categories and subjects", parts)


def named_parts(found: Any) -> dict[str, float]:
    """Name -> accuracy, from a result's `groups` (a mapping) or `tasks` (a list)."""
    pairs = found.items() if isinstance(found, dict) else [(part["task"], part) for part in found]
    return {name: part["value"] for name, part in pairs}


# -------------------------------------------------------------------------------------------------- quality and stages


def quality(run: RunFolder) -> Section:
    """The numbers of texts with each flag, for each teacher and kind, which post-processing has counted."""
    parts = []
    for path, manifest in run.manifests:
        if manifest["stage"] == "quality":
            counts = manifest["counts"]
            kinds = [kind for kind, found in counts.items() if isinstance(found, dict)]
            flags = list(dict.fromkeys(flag for kind in kinds for flag in counts[kind]))
            rows = [(flag, *(counts[kind].get(flag) for kind in kinds)) for flag in flags]
            texts = manifest["arguments"].get("texts")  # which ones, if not each sample's first
            words = f"Numbers of {'texts' if texts == 'all' else 'samples'} with each flag, of {counts['records']}."
            words += " docs/reference/quality-flags.md describes the flags."
            name = f"{path.parent.name}, {texts}" if texts else path.parent.name
            parts.append(Part(name, words, head=("flag", *kinds), rows=rows, name=f"quality-{name}"))
        elif dropped := manifest.get("counts", {}).get("dropped"):
            of_all = dropped + manifest["counts"].get("train", 0)
            what = "text" if "samples_without_text" in manifest["counts"] else "sample"
            words = f"{path.parent.name}: the filter dropped {dropped} of {plural(of_all, what)}."
            rows = list(manifest["counts"].get("dropped_for", {}).items())
            parts.append(Part(words=words, head=("reason", "samples"), rows=rows))
    return Section("quality", "Quality of the explanations", parts)


def stages(found: Sequence[tuple[Path, dict[str, Any]]], root: Path) -> Section:
    """The time and the tokens of each stage, its exact command, and the host."""
    head = ("stage", "output", "records", "tokens", "seconds", "processes", "process hours", "host", "ended")
    rows = [stage_row(path, manifest, root) for path, manifest in found]
    told = [(path, manifest) for path, manifest in found if manifest["command"]]
    parts = [Part(words="A process hour is an hour of one process, which may use a GPU.", head=head, rows=rows)]
    parts += [Part(code=all_details(told, root), folded=FOLDED)]
    return Section("stages", "Stages", parts if rows else [])


FOLDED = "Commands, versions, digests, image"


def stage_row(path: Path, manifest: dict[str, Any], root: Path) -> Sequence[Cell]:
    counts = manifest.get("counts", {})
    records = next(
        (counts[name] for name in ("records", "samples", "questions", "train", "steps") if name in counts), None
    )
    tokens = sum(counts.get(name, 0) for name in ("prompt_tokens", "new_tokens")) or None
    seconds = counts.get("seconds", duration(manifest))
    processes = counts.get("processes", 1)
    hours = None if seconds is None else seconds * processes / 3600
    ended = (manifest.get("host"), manifest.get("finished"))
    shown = None if seconds is None else f"{seconds:.1f}"
    return (manifest["stage"], place_of(path, root), records, tokens, shown, processes, hours, *ended)


def duration(manifest: dict[str, Any]) -> float | None:
    """The seconds from a stage's start to its end, for a stage that does not count them."""
    try:
        started, finished = (datetime.fromisoformat(manifest[name]) for name in ("started", "finished"))
        return (finished - started).total_seconds()
    except (KeyError, ValueError, TypeError):  # TypeError: only one of the two has a time zone
        return None


def place_of(path: Path, root: Path) -> str:
    place = path.relative_to(root)
    return str(
        place.parent if place.name == manifests.NAME else place.with_name(place.name.replace(f".{manifests.NAME}", ""))
    )


def all_details(told: Sequence[tuple[Path, dict[str, Any]]], root: Path) -> str:
    """The details of the stages, as many as fit on a page."""
    pieces, characters = [], 0
    for number, (path, manifest) in enumerate(told):
        pieces.append(details(path, manifest, root))
        characters += len(pieces[-1])
        if characters > PAGE_CODE_CHARACTERS:
            left = len(told) - number - 1
            more = f"({plural(left, 'stage')} more, not on this page)"
            return cut("\n\n".join(pieces), PAGE_CODE_CHARACTERS) + f"\n\n{more}"
    return "\n\n".join(pieces)


def details(path: Path, manifest: dict[str, Any], root: Path) -> str:
    """A stage's manifest as text: command, arguments, inputs and outputs with their digests, versions, image."""
    lines = [f"{manifest['stage']}: {place_of(path, root)}", f"  command  {' '.join(manifest['command'])}"]
    if manifest.get("arguments"):
        lines.append(
            "  with     "
            + ", ".join(f"{key}={cut(str(value), LONGEST)}" for key, value in manifest["arguments"].items())
        )
    for title, name in (("read", "inputs"), ("wrote", "outputs")):
        for key, described in manifest.get(name, {}).items():
            shown = described["path"] if name == "inputs" else Path(described["path"]).name
            lines.append(f"  {title:8} {key}: {shown}  sha256 {described['sha256']}")
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items() if version)
    lines.append(f"  versions {versions}")
    lines.append(f"  image    {manifest.get('image') or 'none'}")
    lines.append(f"  time     {manifest.get('started')} to {manifest.get('finished')} on {manifest.get('host')}")
    return "\n".join(lines)
