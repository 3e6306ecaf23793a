"""transformers' Trainer with whole checkpoints, packed batches, exact weights of samples, and an exact resume."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints

from teacherlm.catalog.adapters import write_base_digest
from teacherlm.core.errors import UserError
from teacherlm.core.files import make_anew, sync_file, sync_folder
from teacherlm.core.json_files import require_object
from teacherlm.core.trees import files_below
from teacherlm.finetune.adapters import MERGED, has_adapters, save_merged
from teacherlm.finetune.checkpoints import RUNNING_LOSS
from teacherlm.finetune.dev import best_step
from teacherlm.finetune.fields import PhaseSampler
from teacherlm.finetune.watching import machine_memory, model_flops_utilization
from teacherlm.runtime.memory import give_back_freed_memory

INTERRUPTED = "interrupted"
"""A file in a checkpoint that a signal asked for; the next checkpoint replaces such a one."""


def with_filler(tokens: Dataset) -> Dataset:
    """The samples and, after them, one of a single token without a loss; see PhaseSampler.

    Without it accelerate would fill the last batches with samples of the epoch's beginning, which would count twice.
    """
    filler = {**tokens[0], "input_ids": tokens[0]["input_ids"][:1], "skipped": 1, "sample": 0}
    return concatenate_datasets([tokens, Dataset.from_list([filler], features=tokens.features)])


class FinetuneTrainer(Trainer):
    """Trains on batches whose `shares` say how much each token counts.

    A step's loss is the sum of share x cross-entropy over all its batches and processes, divided by the sum of shares:
    the exact weighted mean, however the step's samples are spread over batches, accumulation and processes.

    `checkpoint-N` is written under a hidden name and renamed when it is whole; one that a kill or a full disk
    interrupted is never resumed from, evaluated or counted. A loss that is no number ends the training, unsaved.

    Args:
        phases, shuffle: see PhaseSampler.
        resumed: the checkpoint that training goes on from.
        merge_adapters: save a merged model in each checkpoint of adapters.
        student: digest of the model that is trained, which a checkpoint of adapters keeps.
    """

    _saving_to: Path | None = None

    def __init__(
        self,
        *,
        phases: list[int],
        shuffle: bool = True,
        resumed: Path | None = None,
        merge_adapters: bool = False,
        student: str = "",
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        **options: Any,
    ):
        dev = None if eval_dataset is None else with_filler(eval_dataset)
        super().__init__(train_dataset=with_filler(train_dataset), eval_dataset=dev, **options)
        self.phases, self.shuffle, self.merge_adapters, self.student = phases, shuffle, merge_adapters, student
        self.loss_is_scaled_for_ga = True
        self.carried = require_object(resumed / RUNNING_LOSS) if resumed else None
        self.tokens, self.clock = 0, time.monotonic()

    def _get_train_sampler(self, train_dataset: Any = None) -> PhaseSampler:
        return PhaseSampler(self.phases, self.args.seed, self.shuffle, self.at_once(self.args.train_batch_size))

    def _get_eval_sampler(self, eval_dataset: Any) -> PhaseSampler:
        samples = len(eval_dataset) - 1
        return PhaseSampler([samples], 0, shuffle=False, multiple=self.at_once(self.args.eval_batch_size))

    def at_once(self, batch: int) -> int:
        """Samples that all processes compute at once; a single process may have a smaller last batch."""
        return batch * self.args.world_size if self.args.world_size > 1 else 1

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device) -> Any:
        """The sum of shares of a step, as each process has to divide by it: gradients are averaged over processes."""
        total = sum(batch["shares"].double().sum() for batch in batch_samples)
        if self.args.world_size > 1:
            total = self.accelerator.gather(torch.as_tensor(total, device=device)).sum() / self.args.world_size
        return total

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        samples_B = inputs.pop("samples")
        inputs["shares"] = inputs["shares"] / num_items_in_batch.float()
        outputs = model(**inputs, use_cache=False)
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            numbers = ", ".join(map(str, sorted(set(samples_B.tolist()))))
            raise UserError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}, in a batch of the samples "
                f"{numbers}; the last checkpoint is untouched; try a smaller learning rate, or look at these samples"
            )
        if self.model.training:
            self.tokens += int(
                inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
            )
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
        if self.carried is not None:  # the log's next line began before the checkpoint
            self._tr_loss += self.carried["sum"]
            self._globalstep_last_logged = self.carried["since"]
            self.carried = None
        return super().training_step(*args, **options)

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        """The weighted mean loss over all dev samples, however they are spread over batches and processes."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64)  # of share x loss, of shares
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                inputs = self._prepare_inputs(batch)
                inputs.pop("samples")
                shares = inputs["shares"].sum()
                sums += torch.stack([self.model_wrapped(**inputs, use_cache=False)["loss"], shares]).double().cpu()
        if self.args.world_size > 1:
            sums = self.accelerator.gather(sums.to(self.args.device)[None]).sum(0).cpu()
        metrics = {"eval_loss": float(sums[0] / sums[1])}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        if "loss" in logs:
            logs = {**logs, **self.speed()}
            if self.args.device.type == "cpu":  # only there it is kept (processes.py)
                give_back_freed_memory()
        super().log(logs, *args, **options)

    def speed(self) -> dict[str, float]:
        """Real tokens a second of all processes since the last call, share of the GPU's peak, and memory."""
        now = time.monotonic()
        tokens = torch.tensor(float(self.tokens), device=self.args.device)
        if self.args.world_size > 1:
            tokens = self.accelerator.gather(tokens).sum()
        rate = float(tokens) / max(now - self.clock, 1e-9)
        self.tokens, self.clock = 0, now
        described = {"tokens_per_second": round(rate, 1), "memory_gib": round(machine_memory() / 2**30, 2)}
        utilization = model_flops_utilization(self.parameters, rate / self.args.world_size)
        return described | ({"mfu": round(utilization, 4)} if utilization is not None else {})

    @property
    def parameters(self) -> int:
        return sum(getattr(part, "ds_numel", part.numel()) for part in self.model.parameters())

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_to) if self._saving_to else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        self.require_finite()
        self._saving_to = folder / ".partial"
        try:
            if self.args.should_save:
                make_anew(self._saving_to)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.publish(self._saving_to / name, folder / name)
            self.accelerator.wait_for_everyone()
        finally:
            if self.args.should_save:
                shutil.rmtree(self._saving_to, ignore_errors=True)
            self._saving_to = None

    def publish(self, whole: Path, checkpoint: Path) -> None:
        """Give a checkpoint its name, now that all of it is there."""
        if has_adapters(self.model):
            write_base_digest(whole, self.student)
        if self.merge_adapters and has_adapters(self.model):
            save_merged(self.accelerator.unwrap_model(self.model), self.processing_class, whole / MERGED)
        # A pickle of all arguments, paths and host names among them, that nothing reads.
        (whole / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        since = self._globalstep_last_logged
        (whole / RUNNING_LOSS).write_text(json.dumps({"sum": self._tr_loss.item(), "since": since}))
        for file in files_below(whole):
            sync_file(file)
        shutil.rmtree(checkpoint, ignore_errors=True)
        os.rename(whole, checkpoint)
        sync_folder(checkpoint.parent)
        for marker in checkpoint.parent.glob(f"checkpoint-*/{INTERRUPTED}"):
            shutil.rmtree(marker.parent)
        best = best_step(self.state)
        rotate_checkpoints(
            str(checkpoint.parent),
            self.args.save_total_limit,
            best_model_checkpoint=str(checkpoint.parent / f"checkpoint-{best}") if best else None,
            use_mtime=True,
        )

    def require_finite(self) -> None:
        for name, part in self.model.named_parameters():
            if not torch.isfinite(part).all():
                raise UserError(
                    f"after step {self.state.global_step} the weights {name} are no numbers any more; this is not "
                    "saved, the last checkpoint is untouched; try a smaller learning rate"
                )
