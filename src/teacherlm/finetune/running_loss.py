"""The sum of the losses since the log's last line, which a checkpoint carries to the run that goes on from it."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class RunningLoss(TrainerCallback, ExportableState):
    """Adds up the losses of steps; the Trainer keeps `state` in a checkpoint's trainer_state.json.

    The Trainer's own sum begins anew with each process, so that the first line of the log after an interruption would
    leave out the steps before it.

    Args:
        total: of the steps since the last line of the log.
        since: the step of that line.
    """

    def __init__(self, total: float = 0.0, since: int = 0):
        self.total, self.since = torch.tensor(total), since
        self.saved = total

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.total = self.total.to(args.device)
        # The Trainer saves the states of those callbacks only that it finds here; earlier checkpoints have none.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of one batch, a step's sum of which is the step's loss."""
        self.total += loss

    def mean(self, step: int, over_processes: Callable[[torch.Tensor], float]) -> float:
        """The mean loss of the steps since the last line, for the line of this step; the sum begins anew."""
        mean = over_processes(self.total) / (step - self.since)
        self.total.zero_()
        self.since = step
        return mean

    def share(self, over_processes: Callable[[torch.Tensor], float]) -> None:
        """Take the mean over the processes for the checkpoint that follows; they all call this together."""
        self.saved = over_processes(self.total)

    def state(self) -> dict[str, Any]:
        return {"args": {"total": self.saved, "since": self.since}, "attributes": {}}
