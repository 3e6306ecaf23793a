"""The loss on samples that are not trained on, after each epoch: the best checkpoint's link, and when to stop early."""

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from teacherlm.runtime.processes import is_first, say

BEST = "best"
"""A link in the run's folder to the checkpoint with the lowest loss on the dev samples."""


def dev_losses(state: Any) -> list[tuple[int, float]]:
    """(step, loss) of every epoch so far; the Trainer keeps them in its state, so that they outlive a kill."""
    return [(entry["step"], entry["eval_loss"]) for entry in state.log_history if "eval_loss" in entry]


def best_step(state: Any) -> int | None:
    """The step with the lowest loss, the first of equals; None before there is one."""
    return min(dev_losses(state), key=lambda pair: pair[1], default=(None,))[0]


class DevLoss(TrainerCallback):
    """Links to the best checkpoint and, after `patience` epochs without a better one, stops.

    Args:
        patience: None never stops.
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
            say(f"finetune: no better loss on the dev samples for {worse} epochs; the best is checkpoint-{best}")
            control.should_training_stop = True


def link(folder: Path, name: str) -> None:
    """Let BEST point to a checkpoint, at once."""
    temporary = folder / f".{BEST}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, folder / BEST)
