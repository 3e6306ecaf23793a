"""Replicates: runs that differ only in the seed. Their results are joined into one, which the page shows as one row."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from teacherlm.core.terminal import plural
from teacherlm.report.resampling import mean_interval
from teacherlm.report.scored import ROUNDED, Question, Scored, say
from teacherlm.report.table import epoch_of
from teacherlm.report.training_run import Run


@dataclass(frozen=True)
class Joined:
    """The results of several seeds of one run on one task, which were scored on the same questions.

    Attributes:
        name: the name on the page: `RUN, checkpoint-50 (3 seeds)`.
        members: the result of each seed.
        result: the same fields as in a result's file. A `value` is the mean over the seeds, and `interval_95` is that
            of the two-level bootstrap. It is None if the metric is not the mean of the questions' values.
    """

    name: str
    members: tuple[Scored, ...]
    result: dict[str, Any] = field(repr=False)

    @property
    def task(self) -> str:
        return str(self.result["task"])


Model = Scored | Joined
"""A row of a table: a result, or the joined results of several seeds."""


def members_of(model: Model) -> tuple[Scored, ...]:
    return model.members if isinstance(model, Joined) else (model,)


def values_of(model: Model, questions: Sequence[Question]) -> np.ndarray:
    """The value of each seed (rows) on each question (columns): 1 for a right answer, and 0 for a wrong one."""
    return np.array([[one.answers.values[question] for question in questions] for one in members_of(model)])


# --------------------------------------------------------------------------------------------------------------- runs


def replicates(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs in groups. Runs of a group differ only in the seed, and are ordered by it. Most groups have one run.

    A run is alone if its finetuning is not finished. A copy of a run, with the same seed and inputs, is in a group of
    its own, because it says nothing new.
    """
    groups: list[list[Run]] = []
    for run in runs:
        group = next((group for group in groups if belongs(run, group)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return [sorted(group, key=lambda run: run.recorded.seed if run.recorded else 0) for group in groups]


def belongs(run: Run, group: Sequence[Run]) -> bool:
    if run.recorded is None or group[0].recorded is None:
        return False
    alike = (run.recorded.kin, run.evaluated) == (group[0].recorded.kin, group[0].evaluated)
    return alike and all(is_other_seed(run, one) for one in group)


def is_other_seed(run: Run, other: Run) -> bool:
    one, two = run.recorded, other.recorded
    return one is not None and two is not None and (one.seed, one.inputs) != (two.seed, two.inputs)


def group_name(group: Sequence[Run]) -> str:
    """The name of the runs without the seed: RUN for RUN_seed0 and RUN_seed1, else the beginning that names share."""
    names = {run.name.replace(f"_seed{run.recorded.seed}", "") for run in group if run.recorded}
    if len(names) == 1:
        return names.pop()
    same = itertools.takewhile(lambda characters: len(set(characters)) == 1, zip(*(run.name for run in group)))
    return "".join(characters[0] for characters in same).rstrip(" _-.,:") or group[0].name


# ------------------------------------------------------------------------------------------------------------ results


def checkpoints_by_epoch(group: Sequence[Run], task: str) -> dict[str, list[Scored]]:
    """The results of the group's checkpoints on a task by epoch (`epoch 2`), in the order of the steps.

    Where a log does not say the epoch, or gives two checkpoints the same one, checkpoints of a step belong together.
    """
    found: dict[str, list[Scored]] = {}
    for run in group:
        seen = set()
        for scored in run.checkpoints:
            if scored.task == task:
                epoch = epoch_of(run.log, scored.step)
                name = f"epoch {epoch:g}" if epoch is not None and epoch not in seen else f"checkpoint-{scored.step}"
                seen.add(epoch)
                found.setdefault(name, []).append(scored)
    return dict(sorted(found.items(), key=lambda named: named[1][0].step))


def final_models(group: Sequence[Run], task: str) -> list[Model]:
    """The last checkpoints of the runs of a group on a task, joined. A run whose last one is not scored stays alone."""
    last = [(run, scored[-1]) for run in group if (scored := [one for one in run.checkpoints if one.task == task])]
    complete = [scored for run, scored in last if run.recorded and run.recorded.last_step in (None, scored.step)]
    return [*join(group, complete, "last checkpoints"), *(scored for _, scored in last if scored not in complete)]


def join(group: Sequence[Run], scored: Sequence[Scored], which: str) -> list[Model]:
    """The results of runs of a group on one task: joined if there are several of the same questions and settings.

    Args:
        which: which checkpoints these are, in words, for a name if their steps differ.
    """
    parts: list[list[Scored]] = []
    for one in scored:
        part = next((part for part in parts if is_same_scoring(part[0], one)), None)
        if part is None:
            parts.append([one])
        else:
            part.append(one)
    if len(parts) > 1:
        first, other = parts[0][0], parts[1][0]
        say(
            other.missing,
            f"replicates: {first.name} and {other.name} differ only in the seed, and are not joined on {first.task}: "
            "they were scored on different questions or with different settings",
        )
    return [joined(group_name(group), part, which) if len(part) > 1 else part[0] for part in parts]


def is_same_scoring(one: Scored, other: Scored) -> bool:
    """Whether two results are of the same questions, asked in the same way."""
    same = one.settings is not None and one.settings == other.settings
    same = same and one.result["metric"] == other.result["metric"] and one.result["n"] == other.result["n"]
    return same and one.answers.values.keys() == other.answers.values.keys()


def joined(name: str, members: Sequence[Scored], which: str) -> Joined:
    """The joined results of at least two seeds.

    Args:
        name: the name of the runs without the seed.
        which: see `join`.
    """
    steps = {one.step for one in members}
    which = f"checkpoint-{steps.pop()}" if len(steps) == 1 else which
    results = [one.result for one in members]
    result = {name: results[0][name] for name in ("task", "metric", "n")} | {"interval_95": None, **mean_part(results)}
    questions = list(members[0].answers.values)
    found = Joined(f"{name}, {which} ({plural(len(members), 'seed')})", tuple(members), result)
    if questions and result["value"] is not None:
        values_SQ = values_of(found, questions)
        if abs(values_SQ.mean() - result["value"]) <= ROUNDED:  # the value is the mean over these questions
            result["interval_95"] = mean_interval(values_SQ)
    for key in ("tasks", "groups"):
        result[key] = mean_parts([one.get(key, ()) for one in results])
    return found


def mean_part(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = [part["value"] for part in parts]
    return {"value": None if None in values else sum(values) / len(values)}


def mean_parts(found: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Name -> the mean value over the seeds, for the parts that all seeds have.

    Args:
        found: `groups` (a mapping) or `tasks` (a list) of each seed's result.
    """
    named = [one if isinstance(one, dict) else {part["task"]: part for part in one} for one in found]
    return {name: mean_part([one[name] for one in named]) for name in named[0] if all(name in one for one in named)}
