"""Checkpoints that appear whole, a log that continues, and the check that a folder's checkpoints are of this run."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from teacherlm import manifests
from teacherlm.errors import UserError
from teacherlm.files import set_aside, sync_file, sync_folder, whole_file
from teacherlm.records import dump_line, read_records, write_records

RUN = "run.json"
LOG = "log.jsonl"


class WholeCheckpointTrainer(Trainer):
    """transformers' Trainer, but `checkpoint-N` is written under a hidden name and renamed when it is whole.

    A checkpoint that a kill or a full disk interrupted is therefore never resumed from, evaluated or counted.
    """

    _saving_to: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_to) if self._saving_to else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self._saving_to = folder / ".partial"
        try:
            shutil.rmtree(self._saving_to, ignore_errors=True)
            super()._save_checkpoint(model, trial)
            whole = self._saving_to / name
            for file in whole.iterdir():
                sync_file(file)
            shutil.rmtree(folder / name, ignore_errors=True)
            os.rename(whole, folder / name)
            sync_folder(folder)
        finally:
            shutil.rmtree(self._saving_to, ignore_errors=True)
            self._saving_to = None
        rotate_checkpoints(str(folder), self.args.save_total_limit, use_mtime=True)


class LossLog(TrainerCallback):
    """Appends what the Trainer logs to log.jsonl, one object a line; an epoch's end is always logged.

    Args:
        path: of the log. Lines after `resumed_step` are dropped: those steps are done again.
    """

    def __init__(self, path: Path, resumed_step: int):
        self.path = path
        self.step = resumed_step
        kept = []
        if path.exists() and path.stat().st_size:
            kept = [record for _, record in read_records(path) if record["step"] <= resumed_step]
        write_records(path, kept)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        steps, self.step = state.global_step - self.step, state.global_step
        record = {
            "step": state.global_step,
            "steps": steps,  # that the loss is the mean of
            "epoch": round(state.epoch, 6),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "time": round(time.time(), 3),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(dump_line(record) + "\n")

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = True


def claim_folder(folder: Path, arguments: Mapping[str, Any], inputs: Mapping[str, Any], restart: bool) -> Path | None:
    """Make the folder this run's own, and return its last whole checkpoint, or None.

    Args:
        arguments, inputs: what the checkpoints depend on; kept in run.json. The number of epochs is not among it:
            more of them continue the same run.
        restart: a folder of another run is set aside instead of refused.

    Raises:
        UserError: the folder holds another run's checkpoints, or files that are no run's at all.
    """
    shutil.rmtree(folder / ".partial", ignore_errors=True)
    if folder.is_dir() and any(folder.iterdir()):
        run = None
        with contextlib.suppress(OSError, ValueError):
            run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if run is None:
            other = [f"it has no {RUN}, so it is not known what made it"]
        else:
            other = manifests.changes({**run, "outputs": {}}, "finetune", arguments, inputs)
        if other and not restart:
            raise UserError(
                f"{folder}: there is another run here ({'; '.join(other)}); choose another run name, or pass "
                "--restart, which keeps that folder beside"
            )
        if other:
            print(f"finetune: {folder} held another run ({'; '.join(other)}), kept as {set_aside(folder)}")
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / RUN) as file:
        json.dump({"stage": "finetune", "arguments": dict(arguments), "inputs": dict(inputs)}, file, indent=2)
    last = get_last_checkpoint(str(folder))
    return Path(last) if last else None
