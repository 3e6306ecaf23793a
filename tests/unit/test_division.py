"""A run in another number of processes keeps its effective batch."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teacherlm.core.errors import UserError
from teacherlm.core.manifests import stage_version
from teacherlm.finetune.division import Division, kept_division
from teacherlm.finetune.recorded import with_defaults

INPUTS = {"dataset": {"sha256": "d"}, "student": {"sha256": "s"}}


def divide(
    folder: Path,
    effective: int,
    began_in: int | None,
    batch: int,
    accumulation: int,
    processes: int,
    average: str = "token",
    restart: bool = False,
    **other: Any,
) -> Division | None:
    """The division of a run with `effective` samples per step that is called with other flags and processes."""
    run = with_defaults({"arguments": {"effective_batch": effective, "loss_average": average}, "inputs": INPUTS})
    run |= {"stage": "finetune", "version": stage_version("finetune")}
    run |= {} if began_in is None else {"processes": began_in}
    (folder / "run.json").write_text(json.dumps(run))
    arguments = {**run["arguments"], "effective_batch": batch * accumulation * processes, **other}
    training: Any = SimpleNamespace(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, world_size=processes
    )
    return kept_division(folder, arguments, INPUTS, training, average, restart)


@pytest.mark.parametrize(
    ("effective", "began_in", "batch", "accumulation", "processes", "expected"),
    [
        (64, 4, 8, 2, 2, (8, 4)),
        (64, 4, 8, 2, 1, (8, 8)),
        (64, 4, 8, 2, 16, (4, 1)),
        (6, 3, 2, 1, 2, (1, 3)),  # 2 does not divide 3
        (64, 4, 8, 2, 4, None),  # nothing changed
        (64, 4, 8, 4, 2, None),  # the flags keep it themselves
        (64, 4, 4, 2, 4, None),  # the user asks for another batch
        (64, None, 8, 2, 2, None),  # nobody knows, and there is no checkpoint
    ],
)
def test_accumulation_and_batch(
    effective: int, began_in: int | None, batch: int, accumulation: int, processes: int, expected: Any, tmp_path: Path
) -> None:
    assert divide(tmp_path, effective, began_in, batch, accumulation, processes) == expected


def test_a_new_run_and_another_run_are_left_alone(tmp_path: Path) -> None:
    assert divide(tmp_path, 64, 4, 8, 2, 2, learning_rate=0.5) is None
    (tmp_path / "run.json").write_text("{}")
    training: Any = SimpleNamespace(per_device_train_batch_size=8, gradient_accumulation_steps=2, world_size=2)
    for folder in (tmp_path, tmp_path / "new"):
        assert kept_division(folder, {"effective_batch": 32}, {}, training, "token", False) is None


def test_the_mean_of_a_device_batch_keeps_the_batch(tmp_path: Path) -> None:
    assert divide(tmp_path, 64, 4, 8, 2, 2, average="batch") == (8, 4)
    with pytest.raises(
        UserError, match=r"16 processes cannot share equally in whole batches of 8 .* take 1, 2, 4 or 8"
    ):
        divide(tmp_path, 64, 4, 8, 2, 16, average="batch")


def test_numbers_that_share_the_samples_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"with 4 samples per step, which 3 processes cannot .* take 1, 2 or 4 "):
        divide(tmp_path, 4, 2, 2, 1, 3)
    with pytest.raises(UserError, match="take 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12 or 5040 "):
        divide(tmp_path, 5040, 2, 2520, 1, 11)
    assert divide(tmp_path, 4, 2, 2, 1, 3, restart=True) is None  # the run begins again
