"""SIGUSR1 and SIGTERM end a training at its next step with a checkpoint, so that a job can be requeued and go on."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from teacherlm.core.interrupts import Stop
from teacherlm.finetune.trainer import INTERRUPTED


class Interrupts(TrainerCallback):
    """Saves and stops after a signal, in all processes at the same step, whichever of them got it."""

    def __init__(self) -> None:
        self.stop = Stop()
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = self.stop.asked
        if args.world_size > 1:
            flag = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = bool(flag)
        if asked and not state.global_step >= state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped:  # in the midst of an epoch: its log goes on after resuming
            control.should_log = control.should_save = control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped and state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / INTERRUPTED).touch()
