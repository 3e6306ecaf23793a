"""Print the table of a run: accuracy, 95 % interval and training loss of the untrained student and every checkpoint."""

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacherlm.core import tables
from teacherlm.core.errors import UserError
from teacherlm.core.flags import flag, parse
from teacherlm.core.names import file_name
from teacherlm.core.records import Record
from teacherlm.core.results import GENERATED, read_result
from teacherlm.core.terminal import plural, printable
from teacherlm.report.scored import step_of
from teacherlm.report.training_run import read_log


@dataclass(frozen=True)
class TableFlags:
    """The places of a run's results."""

    task: str = flag(help="the name of the task that was scored")
    untrained: Path = flag(help="folder with the untrained student's result")
    checkpoints: Path = flag(help="folder with a folder of results per checkpoint")
    log: Path = flag(help="log.jsonl of the finetuning")
    answer: str = flag(
        "auto",
        choices=("auto", "letter", "generate", "both"),
        help="the measure, as for the evaluation; auto (default): letter, and generate where only that was measured",
    )


def main() -> None:
    flags = parse(
        TableFlags,
        __doc__,
        example="teacherlm table --task creak --untrained base --checkpoints results --log run/log.jsonl",
    )
    said: list[str] = []
    log = read_log(flags.log, said)
    if said:
        raise UserError(said[0])
    tables = [table(read_results(flags.untrained, flags.checkpoints, name), log) for name in names(flags)]
    print("\n\n".join(tables))


def names(flags: TableFlags) -> list[str]:
    """The names of the task in the results, one per measure."""
    written = flags.task + GENERATED
    if flags.answer != "auto":
        return [flags.task] * (flags.answer != "generate") + [written] * (flags.answer != "letter")
    alone = (flags.untrained / f"{file_name(written)}.json").is_file()
    return [written if alone and not (flags.untrained / f"{file_name(flags.task)}.json").is_file() else flags.task]


def read_results(untrained: Path, checkpoints: Path, task: str) -> list[tuple[int, dict[str, Any]]]:
    """(step, result) of the untrained student (step 0) and of each checkpoint, in the order of steps."""
    name = f"{file_name(task)}.json"
    found = sorted((step_of(path.parent), path) for path in checkpoints.glob(f"checkpoint-*/{glob.escape(name)}"))
    results = []
    for step, path in [(0, untrained / name), *((step, path) for step, path in found if step)]:
        if not path.is_file():
            raise UserError(f"{path}: no such result; evaluate/main.py writes it")
        try:
            results.append((step, read_result(path)))
        except ValueError as error:
            raise UserError(f"{path}: this is not a result ({error}); remove it and score the model again") from error
    return results


def table(results: list[tuple[int, dict[str, Any]]], log: list[Record]) -> str:
    rows = [("checkpoint", "epoch", "accuracy", "95 % interval", "loss")]
    before = 0
    for step, result in results:
        loss, epoch = mean_loss(log, before, step), epoch_of(log, step)
        name = f"checkpoint-{step}" if step else f"{result.get('model', '-')} (untrained)"
        rows.append(
            (
                name,
                "-" if epoch is None else f"{epoch:g}",
                "-" if result["value"] is None else f"{result['value']:.4f}",
                "{:.4f} - {:.4f}".format(*result["interval_95"]) if result.get("interval_95") else "-",
                "-" if loss is None else f"{loss:.4f}",
            )
        )
        before = step
    first = results[0][1]
    asked = plural(first["n"], "test question")
    note = f"accuracy on {asked} of {first['task']}; the loss is the mean since the row above"
    return f"{tables.table(rows)}\n\n{printable(note)}"


def mean_loss(log: list[Record], after: int, until: int) -> float | None:
    """The mean training loss over the steps (after, until], or None if there are none."""
    records = [record for record in log if after < record["step"] <= until and {"loss", "steps"} <= record.keys()]
    steps = sum(record["steps"] for record in records)
    return sum(record["loss"] * record["steps"] for record in records) / steps if steps else None


def epoch_of(log: list[Record], step: int) -> float | None:
    return next((record.get("epoch") for record in log if record["step"] == step), 0 if step == 0 else None)
