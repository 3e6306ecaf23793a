"""One step of the optimizer: its learning rates, the clipping, and what is done when a gradient is not finite."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from teacherlm.atlas import workers
from teacherlm.atlas.options import TrainFlags
from teacherlm.core.errors import UserError

MOST_SKIPPED = {"fp16": 25, "others": 5}
"""Steps in a row that may be skipped. With fp16 the first ones are skipped as a rule, until the scale of the losses is
low enough: it begins with 2^16 and is halved each time."""


def set_rates(optimizer: torch.optim.Optimizer, share: float, retriever_learns: bool) -> None:
    """Give each group its learning rate, `share` of its `base`.

    Call this before `backward`: DeepSpeed steps inside it.
    """
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = group["base"] * share if number == 0 or retriever_learns else 0.0


def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Set Adam's step count of the retriever back to zero, after a step in which the retriever did not learn.

    DeepSpeed treats a missing gradient as zero and still counts the step: Adam's first real ones would be smaller.
    """
    for group in optimizer.param_groups[1:]:
        for weight in group["params"]:
            if weight in optimizer.state:
                optimizer.state[weight]["step"].zero_()


def take_step(accelerator: Any, trainee: nn.Module, optimizer: Any, clip: float) -> bool:
    """Clip the gradient of reader and retriever together and step; False where it is not finite and nothing changed.

    DeepSpeed has done both in `backward`, and fp16's scaler leaves such a step out by itself: they say so afterwards.
    """
    norm = accelerator.clip_grad_norm_(trainee.parameters(), clip)
    by_itself = accelerator.scaler is not None or accelerator.distributed_type == "DEEPSPEED"
    finite = by_itself or bool(norm.isfinite())
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return finite and not accelerator.optimizer_step_was_skipped


class Skips:
    """Steps in a row whose gradient was not finite: each is said, and after too many the run ends.

    Args:
        folder: of the run.
    """

    def __init__(self, asked: TrainFlags, folder: Path):
        most = MOST_SKIPPED["fp16" if asked.precision == "fp16" else "others"]
        self.most = max(1, min(most, asked.total_steps // asked.accumulation_steps))
        self.folder, self.in_a_row = folder, 0

    def note(self, skipped: bool, step: int) -> None:
        """After a step, in all workers alike.

        Raises:
            UserError: too many were skipped, one after the other.
        """
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        if skipped:
            workers.say(f"train: step {step} skipped: its gradient is not finite ({self.in_a_row} in a row)")
        if self.in_a_row < self.most:
            return
        saved = max(self.folder.glob("checkpoint/step-*"), key=lambda path: path.stat().st_mtime, default=None)
        mistake = (
            f"{self.folder}: {self.in_a_row} steps in a row, up to step {step}, had a gradient that is not finite (NaN "
            f"or infinity), and were skipped; {saved or 'no checkpoint'} is what was saved before. Give a lower --lr, "
            "or --precision fp32 or bf16"
        )
        raise UserError(mistake) if workers.is_first() else SystemExit(2)
