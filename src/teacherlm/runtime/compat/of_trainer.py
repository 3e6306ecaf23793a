"""What this project uses of transformers' Trainer (5.x) and TrainingArguments without a public interface for it."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints


def use_one_gpu(training: TrainingArguments) -> None:
    """Let a process use one GPU at most; the Trainer would put all that it sees under torch's DataParallel.

    `n_gpu` is a public property, but it can be set by its private attribute only.
    """
    training._n_gpu = min(training.n_gpu, 1)


class StagedTrainer(Trainer):
    """A Trainer that writes checkpoints into a folder of their own, `staging`, instead of `args.output_dir`.

    A callback's `on_save` moves a whole one to its place. Setting `args.output_dir` instead would also move what other
    callbacks write there, such as tensorboard's files.
    """

    staging: Path

    def __init__(self, **options: Any):
        super().__init__(**options)
        # The loss is divided by the number of accumulated batches, unless this attribute says that it was scaled.
        self.loss_is_scaled_for_ga = True

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging)

    def prepared(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch on the model's device, and under DeepSpeed in its precision, as each training step has it.

        The public `prediction_step` does this too, but computes and divides the loss in its own way.
        """
        return self._prepare_inputs(batch)


def remove_arguments(checkpoint: Path) -> None:
    """Remove the pickle of all arguments, paths and host names among them, that nothing reads.

    The Trainer saves it with every model, whatever the settings.
    """
    (checkpoint / TRAINING_ARGS_NAME).unlink(missing_ok=True)


def keep_newest(folder: Path, limit: int | None, best: Path | None) -> None:
    """Remove the oldest checkpoints of a folder beyond a limit (--save_total_limit), but not the best one.

    The Trainer does this with the same function in the folder that it writes to, which is another one here.
    """
    rotate_checkpoints(str(folder), limit, best_model_checkpoint=str(best) if best else None, use_mtime=True)
