"""SIGUSR1 and SIGTERM end a training at its next step with a checkpoint, so that a job can be requeued and go on."""

import signal
from pathlib import Path
from typing import Any

import torch
from trainer import INTERRUPTED
from transformers import TrainerCallback

REQUEUE = 75
"""Exit code of an interrupted training that can go on: EX_TEMPFAIL of sysexits.h. The job script requeues on it."""


class Interrupts(TrainerCallback):
    """Saves and stops after a signal, in all processes at the same step, whichever of them got it."""

    def __init__(self) -> None:
        self.asked = self.stopped = False
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGUSR1, signal.SIGTERM)}

    def restore(self) -> None:
        """Give the signals back to who had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = self.asked
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
