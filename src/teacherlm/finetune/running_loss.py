"""The sum of the losses since the last log line. A checkpoint keeps it for the run that resumes from it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from teacherlm.catalog.text_parts import PARTS

OverProcesses = Callable[[torch.Tensor], torch.Tensor]
"""The mean of a tensor over the processes."""


class RunningLoss(TrainerCallback, ExportableState):
    """Adds up the losses of steps. The Trainer stores `state` in a checkpoint's trainer_state.json.

    The Trainer's own sum begins at 0 in each process. So the first log line after an interruption would omit the steps
    before the interruption.

    Args:
        total: the sum of the losses since the last log line.
        since: the step of that line.
        parts: the sums of the losses of PARTS since that line, if parts have weights.
        occurred: in how many steps since that line each of PARTS had a token.
    """

    def __init__(self, total: float = 0.0, since: int = 0, parts: Sequence[float] = (), occurred: Sequence[float] = ()):
        self.total, self.since = torch.tensor(total), since
        none = [0.0] * len(PARTS)
        self.parts_P, self.occurred_P = torch.tensor([*parts] or none), torch.tensor([*occurred] or none)
        self.saved: dict[str, Any] = {"total": total}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.total = self.total.to(args.device)
        self.parts_P, self.occurred_P = self.parts_P.to(args.device), self.occurred_P.to(args.device)
        # The Trainer saves only the states of callbacks that it finds here. Earlier checkpoints lack this one.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of one batch. The loss of a step is the sum over its batches."""
        self.total += loss

    def add_parts(self, losses_P: torch.Tensor) -> None:
        """Add the losses of the parts of one batch of this process, each multiplied by its weight."""
        self.parts_P += losses_P

    def count_parts(self, there_P: torch.Tensor) -> None:
        """Count a step. There_P says which parts it has in any process."""
        self.occurred_P += there_P

    def means_of_parts(self, shares: Sequence[float], over_processes: OverProcesses) -> dict[str, float]:
        """The mean loss of each part since the last log line, over the steps that have it. The sums are set back to 0.

        Args:
            shares: the weights of the parts, by which they were multiplied.
            over_processes: the mean of a tensor over the processes.
        """
        sums = zip(PARTS, shares, over_processes(self.parts_P).tolist(), self.occurred_P.tolist())
        found = {f"{part}_loss": total / share / steps for part, share, total, steps in sums if share and steps}
        self.parts_P.zero_()
        self.occurred_P.zero_()
        return found

    def mean(self, step: int, over_processes: OverProcesses) -> float:
        """The mean loss of the steps since the last log line. The sum is set back to 0."""
        mean = over_processes(self.total).item() / (step - self.since)
        self.total.zero_()
        self.since = step
        return mean

    def average(self, over_processes: OverProcesses) -> None:
        """Compute the means over the processes for the next checkpoint. All processes must call this together."""
        self.saved = {"total": over_processes(self.total).item()}
        if self.occurred_P.any():
            self.saved |= {"parts": over_processes(self.parts_P).tolist(), "occurred": self.occurred_P.tolist()}

    def state(self) -> dict[str, Any]:
        return {"args": {"since": self.since, **self.saved}, "attributes": {}}
