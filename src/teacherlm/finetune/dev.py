"""The loss on dev samples after each epoch. It decides which checkpoint is the best and when to stop early."""

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from teacherlm.core.terminal import plural
from teacherlm.runtime.processes import is_first, say

BEST = "best"
"""A symbolic link in the run's folder to the checkpoint with the lowest loss on the dev samples."""


def dev_losses(state: Any) -> list[tuple[int, float]]:
    """(step, loss) of every epoch so far. The Trainer keeps them in its state, so they survive a kill."""
    return [(entry["step"], entry["eval_loss"]) for entry in state.log_history if "eval_loss" in entry]


def best_step(state: Any) -> int | None:
    """The first step with the lowest loss; None before the first evaluation."""
    return min(dev_losses(state), key=lambda pair: pair[1], default=(None,))[0]


class DevLoss(TrainerCallback):
    """Links to the best checkpoint, and stops after `patience` epochs without a better one.

    Args:
        patience: number of epochs; None means that training never stops early.
    """

    def __init__(self, patience: int | None):
        self.patience = patience

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses = dev_losses(state)
        if not losses:
            return
        best = best_step(state)
        if is_first():
            link(Path(args.output_dir), f"checkpoint-{best}")
        worse = sum(step > best for step, _ in losses)
        if self.patience is not None and worse >= self.patience:
            epochs = plural(worse, "epoch")
            say(f"finetune: no better loss on the dev samples for {epochs}; the best is checkpoint-{best}")
            control.should_training_stop = True


def link(folder: Path, name: str) -> None:
    """Let BEST point to a checkpoint. The link is replaced atomically."""
    temporary = folder / f".{BEST}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, folder / BEST)
