"""SIGUSR1 and SIGTERM end a training after the current step with a checkpoint, so that a requeued job can continue."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from teacherlm.core.interrupts import Stop
from teacherlm.finetune.trainer import INTERRUPTED


class Interrupts(TrainerCallback):
    """Saves and stops after a signal. All processes stop at the same step, even if only one received the signal."""

    def __init__(self) -> None:
        self.stop = Stop()
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        requested = self.stop.requested
        if args.world_size > 1:
            flag = torch.tensor(int(requested), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            requested = bool(flag)
        if requested and not state.global_step >= state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped:  # the epoch is not complete; the resumed run logs it
            control.should_log = control.should_save = control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped and state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / INTERRUPTED).touch()
