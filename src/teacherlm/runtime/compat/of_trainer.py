"""The private interfaces of transformers' Trainer (5.x) and TrainingArguments that this project uses."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
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

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        # Without this attribute, the Trainer divides the loss by the number of accumulated batches.
        self.loss_is_scaled_for_ga = True

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.staging)

    def prepared(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch on the model's device, and under DeepSpeed in the model's precision, as in a training step.

        The public `prediction_step` does this too, but it also computes and divides the loss, in a different way.
        """
        return self._prepare_inputs(batch)


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
