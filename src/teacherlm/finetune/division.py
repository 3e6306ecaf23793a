"""How the samples of a step are divided among processes and accumulated batches, where a run goes on in another number
of processes than it began in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainingArguments

from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.terminal import plural
from teacherlm.finetune.checkpoints import processes_of_run, read_run
from teacherlm.finetune.recorded import with_defaults

SHOWN = 12
"""Maximum number of numbers that a message lists."""


class Division(NamedTuple):
    """A step has `batch` x `accumulation` samples of each process."""

    batch: int
    accumulation: int


def kept_division(
    folder: Path,
    arguments: Mapping[str, Any],
    inputs: Mapping[str, Any],
    training: TrainingArguments,
    loss_average: str,
    restart: bool,
) -> Division | None:
    """The division that keeps the effective batch of the run in the folder; None if the flags stay as they are.

    They stay unless this is the same run in another number of processes than it began with.

    Args:
        arguments, inputs: what the checkpoints of this run depend on, with the effective batch of the flags.
        loss_average: the flag. With `batch`, the loss depends on the device batch, which therefore stays.
        restart: whether a run that cannot go on is to begin again.

    Raises:
        UserError: this number of processes cannot share the samples of a step. The message names numbers that can.
    """
    run = read_run(folder)
    if run is None:
        return None
    run = with_defaults(run)
    kept = run["arguments"].get("effective_batch")
    if not isinstance(kept, int) or kept < 1 or kept == arguments["effective_batch"]:
        return None
    if processes_of_run(folder, run) in (None, training.world_size):
        return None
    if manifests.differences(run, "finetune", {**arguments, "effective_batch": kept}, inputs):
        return None
    unit = training.per_device_train_batch_size if loss_average == "batch" else 1
    if kept % (training.world_size * unit):
        if restart:
            return None
        raise UserError(cannot_share(folder, kept, unit, training.world_size))
    share = kept // training.world_size
    batch = unit if loss_average == "batch" else largest_divisor(share, training.per_device_train_batch_size)
    return Division(batch, share // batch)


def largest_divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def cannot_share(folder: Path, kept: int, unit: int, processes: int) -> str:
    """The message for a number of processes that cannot share the samples of a step equally."""
    able = [number for number in range(1, kept // unit + 1) if kept % (number * unit) == 0]
    listed = able if len(able) <= SHOWN else [*able[: SHOWN - 1], able[-1]]
    named = f"{', '.join(map(str, listed[:-1]))} or {listed[-1]}" if len(listed) > 1 else str(listed[0])
    whole = f" in whole batches of {unit} (--loss_average batch)" if unit > 1 else ""
    return (
        f"{folder}: the run here was made with {plural(kept, 'sample')} per step, which {processes} processes cannot "
        f"share equally{whole}; take {named} (NUM_GPUS x nodes), or choose another run name"
    )


def said(kept: Division, training: TrainingArguments) -> str:
    """The line that says how the effective batch is kept.

    Args:
        training: the arguments with the division of the flags.
    """
    effective = kept.batch * kept.accumulation * training.world_size
    processes = "1 process" if training.world_size == 1 else f"each of {training.world_size} processes"
    batches = "1 batch" if kept.accumulation == 1 else f"{kept.accumulation} batches"
    given = f"{training.gradient_accumulation_steps} of {training.per_device_train_batch_size}"
    return (
        f"finetune: the run here was made with {plural(effective, 'sample')} per step; to keep that, {processes} "
        f"computes {batches} of {kept.batch} per step in place of {given}"
    )
