"""A folder of checkpoints: which run it belongs to, and its last complete checkpoint."""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from teacherlm.catalog.text_parts import PARTS
from teacherlm.core import manifests
from teacherlm.core.errors import UserError
from teacherlm.core.files import remove, set_aside, whole_file
from teacherlm.core.json_files import load_object, require_object
from teacherlm.core.outputs import through_links
from teacherlm.core.shapes import flaw_of_shape
from teacherlm.core.trees import files_below
from teacherlm.finetune.recorded import with_defaults
from teacherlm.finetune.savers import DEEPSPEED, Saver, must_change, saved_states, saver_of, user_of, why_unchangeable
from teacherlm.finetune.whole_states import read_zero_states
from teacherlm.runtime.compat.of_deepspeed import state_classes
from teacherlm.runtime.pickles import require_plain, without_code

RUN = "run.json"
RUN_SHAPE = {
    "stage": str,
    "version?": int,
    "arguments?": dict,
    "inputs?": {str: {"sha256?": str}},
    "command?": [str],
    "processes?": int,
}
STATE = "trainer_state.json"
"""The file in a checkpoint with the state of the Trainer and of its callbacks."""
KEPT_LOSS = {"args": {"total": float, "since": int, "parts?": [float], "occurred?": [float]}}
PARTIAL = ".partial"
"""The folder in which a checkpoint is written until it is complete."""
FORMER_RUNNING_LOSS = "running_loss.json"
"""Earlier versions kept the running loss in this file; now it is in trainer_state.json (see running_loss.py)."""


def read_run(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's run.json, or None if there is none, or one of another form."""
    with contextlib.suppress(OSError, ValueError):
        run = load_object(folder / RUN)
        return None if flaw_of_shape(run, RUN_SHAPE) else run
    return None


def processes_of_run(folder: Path, run: Mapping[str, Any]) -> int | None:
    """The number of processes in which a run began, or None if it is not known.

    Earlier versions did not keep it in run.json. Then it is the number that saved the last checkpoint.
    """
    if (known := run.get("processes")) is not None:
        return int(known)
    last = get_last_checkpoint(str(folder))
    return saver_of(Path(last)).processes if last and saved_states(Path(last)) else None


def claim_folder(
    folder: Path, arguments: Mapping[str, Any], inputs: Mapping[str, Any], restart: bool, processes: int
) -> Path | None:
    """Reserve the folder for this run, and return its last complete checkpoint, or None.

    Args:
        arguments, inputs: what the checkpoints depend on (see recorded.py). They are kept in run.json.
        restart: whether the folder of another run is renamed instead of refused.
        processes: the number of processes, which run.json keeps if the run begins. It is no part of what identifies it.

    Raises:
        UserError: the folder holds checkpoints of another run, or files of an unknown origin.
    """
    remove(folder / PARTIAL)
    if folder.is_dir() and any(folder.iterdir()):
        run = read_run(folder)
        if run is None:
            other = [f"it has no {RUN}, so its origin is unknown"]
        else:
            other = manifests.differences(with_defaults(run), "finetune", arguments, inputs)
        if other and not restart:
            raise UserError(
                f"{folder}: there is another run here ({'; '.join(other)}); choose another run name, or pass "
                "--restart, which renames that folder"
            )
        if other:
            print(f"finetune: {folder} held another run ({'; '.join(other)}), which is kept as {set_aside(folder)}")
        elif run is not None:
            processes = processes_of_run(folder, run) or processes
    through_links(folder).mkdir(parents=True, exist_ok=True)
    run = {"stage": "finetune", "version": manifests.stage_version("finetune")}
    run |= {"arguments": dict(arguments), "inputs": dict(inputs), "processes": processes}
    with whole_file(folder / RUN) as file:
        json.dump(run, file, indent=2)
    last = get_last_checkpoint(str(folder))
    if last and not saved_states(Path(last)):
        print(f"finetune: {last} has no optimizer states (--save_only_model); training begins again from step 0")
        return None
    return Path(last) if last else None


def check_resumable(checkpoint: Path, training: TrainingArguments) -> Saver:
    """Refuse to continue from a checkpoint that this run cannot use.

    That is a checkpoint whose states this run cannot load, or could load only by running code from it, or that is
    already longer than this run.

    Returns:
        Who saved the checkpoint.

    Raises:
        UserError: the message says what to do.
    """
    with without_code(state_classes() if saved_states(checkpoint) == DEEPSPEED else ()):
        for file in files_below(checkpoint):
            if file.suffix in (".pt", ".pth"):
                require_plain(file)
    saver, user = saver_of(checkpoint), user_of(training)
    if must_change(saver, user):
        if why := why_unchangeable(saver, user, training):
            raise UserError(
                f"{checkpoint}: its optimizer states were saved by {saver.described}, and {user.described} cannot load "
                f"them ({why}); continue with {saver.flags}, or choose another run name"
            )
        if saver.library == DEEPSPEED:
            read_zero_states(checkpoint)
    state = require_object(checkpoint / STATE, {"global_step": int, "epoch": (float, None)})
    read_running_loss(checkpoint)
    wanted = {"max_steps": training.max_steps} if training.max_steps > 0 else {}
    wanted = wanted or {"num_train_epochs": training.num_train_epochs}
    for flag, length in wanted.items():
        reached = state["global_step"] if flag == "max_steps" else state["epoch"] or 0
        if reached > math.ceil(length):
            raise UserError(
                f"{checkpoint}: the run is already longer ({reached:g}) than --{flag} {length:g}; set --{flag} to at "
                "least that, or choose another run name"
            )
    return saver


def read_running_loss(checkpoint: Path) -> dict[str, Any]:
    """The arguments of RunningLoss that a checkpoint keeps.

    Raises:
        UserError: the checkpoint's file cannot be read.
    """
    kept = require_object(checkpoint / STATE, {"stateful_callbacks?": {"RunningLoss?": KEPT_LOSS}})
    if (carried := kept.get("stateful_callbacks", {}).get("RunningLoss")) is not None:
        kept_arguments: dict[str, Any] = carried["args"]
        for name in ("parts", "occurred"):
            if len(kept_arguments.get(name, PARTS)) != len(PARTS):
                raise UserError(f"{checkpoint / STATE}: RunningLoss: {name}: {len(PARTS)} numbers were expected")
        return kept_arguments
    former = require_object(checkpoint / FORMER_RUNNING_LOSS, {"sum": float, "since": int})
    return {"total": former["sum"], "since": former["since"]}
