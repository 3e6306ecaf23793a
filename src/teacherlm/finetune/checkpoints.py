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
from teacherlm.core.names import LONGEST_NAME
from teacherlm.core.opening import open_ordinary
from teacherlm.core.outputs import through_links
from teacherlm.core.shapes import flaw_of_shape
from teacherlm.core.terminal import shown
from teacherlm.core.trees import files_below
from teacherlm.finetune.recorded import with_defaults
from teacherlm.runtime.compat.of_deepspeed import state_classes
from teacherlm.runtime.pickles import require_plain, without_code

RUN = "run.json"
RUN_SHAPE = {
    "stage": str,
    "version?": int,
    "arguments?": dict,
    "inputs?": {str: {"sha256?": str}},
    "command?": [str],
}
STATE = "trainer_state.json"
"""The file in a checkpoint with the state of the Trainer and of its callbacks."""
KEPT_LOSS = {"args": {"total": float, "since": int, "parts?": [float], "occurred?": [float]}}
PARTIAL = ".partial"
"""The folder in which a checkpoint is written until it is complete."""
FORMER_RUNNING_LOSS = "running_loss.json"
"""Earlier versions kept the running loss in this file; now it is in trainer_state.json (see running_loss.py)."""
LATEST = "latest"
"""DeepSpeed's file in a checkpoint with the name of the folder that holds its states."""


def claim_folder(folder: Path, arguments: Mapping[str, Any], inputs: Mapping[str, Any], restart: bool) -> Path | None:
    """Reserve the folder for this run, and return its last complete checkpoint, or None.

    Args:
        arguments, inputs: what the checkpoints depend on (see recorded.py). They are kept in run.json.
        restart: whether the folder of another run is renamed instead of refused.

    Raises:
        UserError: the folder holds checkpoints of another run, or files of an unknown origin.
    """
    remove(folder / PARTIAL)
    if folder.is_dir() and any(folder.iterdir()):
        run = None
        with contextlib.suppress(OSError, ValueError):
            run = load_object(folder / RUN)
        if run is None or flaw_of_shape(run, RUN_SHAPE):
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
    through_links(folder).mkdir(parents=True, exist_ok=True)
    run = {"stage": "finetune", "version": manifests.stage_version("finetune")}
    run |= {"arguments": dict(arguments), "inputs": dict(inputs)}
    with whole_file(folder / RUN) as file:
        json.dump(run, file, indent=2)
    last = get_last_checkpoint(str(folder))
    if last and not saved_states(Path(last)):
        print(f"finetune: {last} has no optimizer states (--save_only_model); training begins again from step 0")
        return None
    return Path(last) if last else None


def saved_states(checkpoint: Path) -> str | None:
    """The library that saved the optimizer states of a checkpoint, "torch" or "DeepSpeed"; None if there are none."""
    if (checkpoint / "optimizer.pt").is_file():
        return "torch"
    return "DeepSpeed" if any(checkpoint.glob("global_step*")) else None


def check_resumable(checkpoint: Path, training: TrainingArguments) -> None:
    """Refuse to continue from a checkpoint that this run cannot use.

    That is a checkpoint whose states this run cannot load, or could load only by running code from it, or that is
    already longer than this run.

    Raises:
        UserError: the message says what to do.
    """
    maker = "DeepSpeed" if training.deepspeed else "torch"
    if (saved := saved_states(checkpoint)) != maker:
        how = f"with --deepspeed {'NAME' if saved == 'DeepSpeed' else 'none'}"
        raise UserError(
            f"{checkpoint}: its optimizer states were saved by {saved}, and {maker} cannot load them; continue {how}, "
            "or choose another run name"
        )
    with without_code(state_classes() if maker == "DeepSpeed" else ()):
        for file in files_below(checkpoint):
            if file.suffix in (".pt", ".pth"):
                require_plain(file)
    if maker == "DeepSpeed":
        require_own_states(checkpoint)
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


def require_own_states(checkpoint: Path) -> None:
    """Refuse a checkpoint whose file `latest` names a folder outside of the checkpoint.

    Raises:
        UserError: the message names the file.
    """
    try:
        with open_ordinary(checkpoint / LATEST) as file:
            name = file.read(LONGEST_NAME).decode("utf-8").strip()
    except (OSError, ValueError):
        name = ""
    if not name.startswith("global_step") or "/" in name or not (checkpoint / name).is_dir():
        raise UserError(
            f"{checkpoint / LATEST}: the name of a folder global_stepN in this checkpoint was expected, found "
            f"{shown(name)}; remove this checkpoint, and training resumes from the one before"
        )
