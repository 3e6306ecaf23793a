"""The private interfaces of transformers' Trainer (5.x) and TrainingArguments that this project uses."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, trainer
from transformers.trainer import SCHEDULER_NAME as SCHEDULER_NAME
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints


def use_one_gpu(training: TrainingArguments) -> None:
    """Let a process use at most one GPU. The Trainer would use all visible GPUs, through torch's DataParallel.

    `n_gpu` is a public property, but only its private attribute can be set.
    """
    training._n_gpu = min(training.n_gpu, 1)


class StagedTrainer(Trainer):
    """A Trainer that writes checkpoints into the folder `staging` instead of `args.output_dir`.

    The `on_save` of a callback moves each complete checkpoint to `args.output_dir`. Setting `args.output_dir` to the
    staging folder would also redirect what other callbacks write there, such as tensorboard's files.
    """

    staging: Path
    loads_states = False
    """Whether `load_states` loads the states of optimizer and schedule, in place of the library."""
    draws_anew = False
    """Whether `draw_anew` sets the random states, in place of the library."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # Without this attribute, the Trainer divides the loss by the number of accumulated batches.
        self.loss_is_scaled_for_ga = True

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging)

    def load_states(self, checkpoint: Path) -> None:
        """Load the states of a checkpoint that were saved by another library or number of processes."""
        raise NotImplementedError

    def draw_anew(self) -> None:
        """Set the random states of a training that resumes in another number of processes."""
        raise NotImplementedError

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.loads_states:
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            self.load_states(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.draws_anew:
            super()._load_rng_state(checkpoint)
        else:
            self.draw_anew()

    def prepared(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch on the model's device, and under DeepSpeed in the model's precision, as in a training step.

        The public `prediction_step` does this too, but it also computes and divides the loss, in a different way.
        """
        return self._prepare_inputs(batch)


@contextlib.contextmanager
def without_deepspeed_s_loading() -> Iterator[None]:
    """Within the block, a Trainer with DeepSpeed does not load the states of a checkpoint that it resumes from.

    DeepSpeed refuses those of another number of processes, and the Trainer refuses those of torch. `load_states` loads
    them.
    """
    original = trainer.deepspeed_load_checkpoint
    trainer.deepspeed_load_checkpoint = lambda *_, **__: None
    try:
        yield
    finally:
        trainer.deepspeed_load_checkpoint = original


def remove_arguments(checkpoint: Path) -> None:
    """Remove the pickle of all training arguments, which contains paths and host names and which nothing reads.

    The Trainer saves it with every model; no setting prevents that.
    """
    (checkpoint / TRAINING_ARGS_NAME).unlink(missing_ok=True)


def keep_newest(folder: Path, limit: int | None, best: Path | None) -> None:
    """Remove the oldest checkpoints of a folder beyond a limit (--save_total_limit), but not the best checkpoint.

    The Trainer calls the same function, but for the folder that it writes to, which is the staging folder here.
    """
    rotate_checkpoints(str(folder), limit, best_model_checkpoint=str(best) if best else None, use_mtime=True)
