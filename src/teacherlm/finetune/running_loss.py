"""The sum of the losses since the last log line. A checkpoint keeps it for the run that resumes from it."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class RunningLoss(TrainerCallback, ExportableState):
    """Adds up the losses of steps. The Trainer stores `state` in a checkpoint's trainer_state.json.

    The Trainer's own sum begins at 0 in each process. So the first log line after an interruption would omit the steps
    before the interruption.

    Args:
        total: the sum of the losses since the last log line.
        since: the step of that line.
    """

    def __init__(self, total: float = 0.0, since: int = 0):
        self.total, self.since = torch.tensor(total), since
        self.saved = total

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.total = self.total.to(args.device)
        # The Trainer saves only the states of callbacks that it finds here. Earlier checkpoints lack this one.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of one batch. The loss of a step is the sum over its batches."""
        self.total += loss

    def mean(self, step: int, over_processes: Callable[[torch.Tensor], float]) -> float:
        """The mean loss of the steps since the last log line. The sum is set back to 0."""
        mean = over_processes(self.total) / (step - self.since)
        self.total.zero_()
        self.since = step
        return mean

    def average(self, over_processes: Callable[[torch.Tensor], float]) -> None:
        """Compute the mean over the processes for the next checkpoint. All processes must call this together."""
        self.saved = over_processes(self.total)

    def state(self) -> dict[str, Any]:
        return {"args": {"total": self.saved, "since": self.since}, "attributes": {}}
