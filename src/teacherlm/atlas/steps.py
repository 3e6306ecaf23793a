"""One optimizer step: learning rates, clipping of the gradient, and skipping a step whose gradient is not finite."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from teacherlm.atlas import workers
from teacherlm.atlas.flags import TrainFlags
from teacherlm.core.errors import UserError
from teacherlm.core.terminal import plural

MOST_SKIPPED = {"fp16": 25, "others": 5}
"""Maximum number of consecutive steps that are skipped. With fp16 the first steps are usually skipped until the loss
scale is low enough: it begins at 2^16 and is halved after each skipped step."""


def set_rates(optimizer: torch.optim.Optimizer, fraction: float, retriever_learns: bool) -> None:
    """Set the learning rate of each group to `fraction` times its `base`.

    Call this before `backward`: DeepSpeed steps inside it.
    """
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = group["base"] * fraction if number == 0 or retriever_learns else 0.0


def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Reset Adam's step count for the retriever after a step in which the retriever did not learn.

    DeepSpeed treats a missing gradient as zero and still counts the step. Then Adam's first real steps would be too
    small.
    """
    for group in optimizer.param_groups[1:]:
        for weight in group["params"]:
            if weight in optimizer.state:
                optimizer.state[weight]["step"].zero_()


def take_step(accelerator: Any, trainee: nn.Module, optimizer: Any, clip: float) -> bool:
    """Clip the common gradient of reader and retriever, and take the step. Returns False if the step was skipped.

    A step is skipped if its gradient is not finite. DeepSpeed clips and steps in `backward`, and the fp16 scaler skips
    such a step itself; both report a skipped step afterwards.
    """
    norm = accelerator.clip_grad_norm_(trainee.parameters(), clip)
    by_itself = accelerator.scaler is not None or accelerator.distributed_type == "DEEPSPEED"
    finite = by_itself or bool(norm.isfinite())
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return finite and not accelerator.optimizer_step_was_skipped


class Skips:
    """Counts consecutive steps that were skipped. It prints each one, and ends the run after too many.

    Args:
        folder: the run's folder.
    """

    def __init__(self, flags: TrainFlags, folder: Path):
        most = MOST_SKIPPED["fp16" if flags.precision == "fp16" else "others"]
        self.most = max(1, min(most, flags.total_steps // flags.accumulation_steps))
        self.folder, self.in_a_row = folder, 0

    def note(self, skipped: bool, step: int) -> None:
        """Count a step. All workers call this with the same arguments.

        Raises:
            UserError: too many consecutive steps were skipped.
        """
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if skipped:
            workers.say(f"train: step {step} skipped: its gradient is not finite ({self.in_a_row} in a row)")
        if self.in_a_row < self.most:
            return
        saved = max(self.folder.glob("checkpoint/step-*"), key=lambda path: path.stat().st_mtime, default=None)
        mistake = (
            f"{self.folder}: the training skipped {plural(self.in_a_row, 'step')} in a row, up to step {step}, because "
            f"the gradient is not finite (NaN or infinity); the last saved checkpoint is {saved or 'none'}; use a "
            "lower --lr, or --precision fp32 or bf16"
        )
        raise UserError(mistake) if workers.is_first() else SystemExit(2)
