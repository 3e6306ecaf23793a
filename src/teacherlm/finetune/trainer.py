"""transformers' Trainer with complete checkpoints, packed batches, exact weights of samples, and an exact resume."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader
from transformers import TrainerCallback, set_seed

from teacherlm.catalog.adapters import write_base_digest
from teacherlm.catalog.chat_students import write_record
from teacherlm.catalog.text_parts import PARTS
from teacherlm.core.errors import UserError
from teacherlm.core.files import make_anew, sync_file, sync_folder
from teacherlm.core.trees import files_below
from teacherlm.finetune.adapters import MERGED, has_adapters, save_merged
from teacherlm.finetune.checkpoints import PARTIAL, read_running_loss
from teacherlm.finetune.chunked_loss import SCORES
from teacherlm.finetune.dev import best_step
from teacherlm.finetune.fields import PhaseSampler, TextChoice
from teacherlm.finetune.loss_parts import Shares
from teacherlm.finetune.on_policy import OnPolicy
from teacherlm.finetune.processes import said_once
from teacherlm.finetune.recorded import effective_batch
from teacherlm.finetune.running_loss import RunningLoss
from teacherlm.finetune.savers import DEEPSPEED, Resumed, must_change, user_of
from teacherlm.finetune.soft_targets import BLOCKS
from teacherlm.finetune.token_batches import best_fit
from teacherlm.finetune.watching import machine_memory, model_flops_utilization
from teacherlm.finetune.whole_states import fitted_schedule, load_into_torch, read_torch_states, read_zero_states
from teacherlm.runtime.compat.of_deepspeed import load_whole_states, numbers_of
from teacherlm.runtime.compat.of_trainer import (
    SCHEDULER_NAME,
    StagedTrainer,
    keep_newest,
    remove_arguments,
    without_deepspeed_s_loading,
)
from teacherlm.runtime.loading import base_model
from teacherlm.runtime.memory import give_back_freed_memory
from teacherlm.runtime.pickles import load_plain

INTERRUPTED = "interrupted"
"""A file that marks a checkpoint saved because of a signal. The next checkpoint replaces it."""


def with_filler(tokens: Dataset) -> Dataset:
    """The samples, followed by a sample of one token without a loss; see PhaseSampler.

    Without it, accelerate would fill the last batches with samples from the beginning of the epoch, which would then
    count twice.
    """
    filler = {**tokens[0], "input_ids": tokens[0]["input_ids"][:1], "skipped": 1, "sample": 0}
    filler |= {"parts": tokens[0]["parts"][:1]} if "parts" in filler else {}
    filler |= {BLOCKS: []} if BLOCKS in filler else {}
    return concatenate_datasets([tokens, Dataset.from_list([filler], features=tokens.features)])


def grouped(batches: list[dict[str, torch.Tensor]], count: int) -> list[dict[str, Any]]:
    """The batches of a step in as many groups as the Trainer counts. Early groups may be empty; the last one is not,
    because the gradients are averaged over the processes in it."""
    groups: list[list[dict[str, torch.Tensor]]] = [[] for _ in range(count)]
    for number, batch in enumerate(reversed(batches)):
        groups[count - 1 - number % count].append(batch)
    tokens = [sum(batch["input_ids"].numel() for batch in group) for group in groups]
    # `input_ids` is only counted: the Trainer estimates the number of operations from its size.
    return [
        {"batches": group, "input_ids": torch.empty(size, dtype=torch.int8, device="meta")}
        for group, size in zip(groups, tokens)
    ]


@contextlib.contextmanager
def without_comparison() -> Iterator[None]:
    """Within the block, transformers does not warn of a checkpoint with another device batch or logging interval.

    They may differ when a run goes on; what may not differ is in run.json.
    """
    logger = logging.getLogger("transformers.trainer_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "do not match the ones in the `trainer_state.json`" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def weights_by_part(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The sum of the token weights of each part, [P]."""
    weights_N = batch["token_weights"].flatten().double()
    return torch.zeros(len(PARTS), dtype=torch.float64, device=weights_N.device).index_add_(
        0, batch["parts"].flatten(), weights_N
    )


def numbers(parameter: torch.Tensor) -> int:
    """How many numbers a parameter has; of those in 4 bits (bitsandbytes), a byte holds two."""
    in_4_bits = getattr(parameter, "quant_state", None)
    return numbers_of(parameter) if in_4_bits is None else in_4_bits.shape.numel()


class FinetuneTrainer(StagedTrainer):
    """Trains on batches whose `token_weights` are the weights of their tokens.

    The loss of a step is the sum of token weight x cross-entropy over all its batches and processes, divided by the sum
    of the weights. This is the exact weighted mean, however the samples are split over batches, accumulation and
    processes.

    `checkpoint-N` is written under a hidden name and renamed when it is complete. So a checkpoint that a kill or a full
    disk interrupted is never resumed from, evaluated or counted. A loss that is not finite ends the training without
    saving.

    Args:
        phases, texts, shuffle: see PhaseSampler.
        resumed: the checkpoint from which training resumes.
        read_weights: reads the weights in a checkpoint of the parameters that are trained, by name.
        merge_adapters: whether each checkpoint of adapters also holds a merged model.
        student: the digest of the model in training, which a checkpoint of adapters records.
        is_chat: whether the student is a chat student, which each checkpoint records.
        shares: the weight of each part of the texts (loss_parts.py), or None. With weights, the loss is the weighted
            sum of the means over the parts, each computed as above. A part that a step does not have adds nothing.
        on_policy: the texts that the student writes itself (on_policy.py), or None.
        tokens_per_batch: maximum number of tokens of a device batch, by which the samples of a step are divided among
            batches (token_batches.py); None: `per_device_train_batch_size` samples each.
        callbacks: callbacks whose `on_save` finds each checkpoint in its final place.
    """

    def __init__(
        self,
        *,
        phases: list[int],
        texts: TextChoice | None = None,
        shuffle: bool = True,
        resumed: Resumed | None = None,
        read_weights: Callable[[Path], dict[str, torch.Tensor]] = lambda _: {},
        merge_adapters: bool = False,
        student: str = "",
        is_chat: bool = False,
        shares: Shares | None = None,
        tokens_per_batch: int | None = None,
        on_policy: OnPolicy | None = None,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        callbacks: list[TrainerCallback],
        **kwargs: Any,
    ):
        dev = None if eval_dataset is None else with_filler(eval_dataset)
        self.running = RunningLoss(**(read_running_loss(resumed.checkpoint) if resumed else {}))
        callbacks = [self.running, *callbacks]
        super().__init__(train_dataset=with_filler(train_dataset), eval_dataset=dev, callbacks=callbacks, **kwargs)
        self.callback_handler.callbacks.insert(
            0, Publisher(self)
        )  # first, so that the others find the checkpoint in its place
        self.add_callback(EpochOrder(self))
        self.phases, self.texts, self.shuffle = phases, texts, shuffle
        self.merge_adapters, self.student, self.shares = merge_adapters, student, shares
        self.is_chat = is_chat
        self.tokens_per_batch, self.on_policy = tokens_per_batch, on_policy
        self.staging = Path(self.args.output_dir) / PARTIAL
        self.dev_batches: DataLoader | None = None
        self.tokens, self.clock = 0, time.monotonic()
        self.resumed, self.read_weights = resumed, read_weights
        self.loads_states = resumed is not None and must_change(resumed.saver, user_of(self.args))
        self.draws_anew = resumed is not None and resumed.saver.processes != self.args.world_size
        self.group_names: list[list[str]] = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(without_comparison())
                if self.loads_states:
                    stack.enter_context(without_deepspeed_s_loading())
                return super().train(*args, **kwargs)
        finally:
            if self.args.should_save:
                shutil.rmtree(self.staging, ignore_errors=True)

    # --------------------------------------------------------------------------------------------------------- batches

    def get_train_dataloader(self) -> DataLoader:
        size = self.args.train_batch_size
        self.sampler = PhaseSampler(self.phases, self.args.seed, self.shuffle, self.at_once(size), self.texts)
        whole_steps = self.tokens_per_batch is not None or self.on_policy is not None
        collate = list if whole_steps else self.data_collator  # a step is collated as a whole, in get_batch_samples
        return self.batches(self.train_dataset, size, self.sampler, collate)

    def set_epoch(self) -> None:
        """Tell the sampler which epoch begins or goes on.

        The libraries do not find the sampler of several processes that resume in the middle of an epoch. They would
        get the order of the first epoch.
        """
        steps_per_epoch = -(-sum(self.phases) // effective_batch(self.args))
        self.sampler.set_epoch(self.state.global_step // steps_per_epoch)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if self.dev_batches is None or not self.args.dataloader_persistent_workers:
            size = self.args.eval_batch_size
            sampler = PhaseSampler([len(self.eval_dataset) - 1], 0, shuffle=False, multiple=self.at_once(size))
            self.dev_batches = self.batches(self.eval_dataset, size, sampler, self.data_collator)
        return self.dev_batches

    def batches(self, samples: Dataset, size: int, sampler: PhaseSampler, collate: Callable) -> DataLoader:
        """The batches of this process, on its device."""
        loader = DataLoader(
            samples,
            batch_size=size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def at_once(self, batch: int) -> int:
        """Number of samples that several processes compute at once; 1 for a single process, which needs no filling."""
        return batch * self.args.world_size if self.args.world_size > 1 else 1

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], Any]:
        """The batches of a step, and the number by which each process divides its loss.

        That is the sum of all token weights divided by the number of processes, because gradients are averaged over
        processes.
        """
        batches = list(islice(epoch_iterator, num_batches))
        collate = self.data_collator
        if self.on_policy is not None and self.on_policy.is_own(self.state.global_step):
            with self.accelerator.autocast():
                batches = [self.on_policy.written(samples, self.state.global_step) for samples in batches]
            collate = self.scored
        of_step = batches
        if self.tokens_per_batch is not None:
            of_step = self.cut_by_tokens([sample for samples in batches for sample in samples], device, collate)
            batches = grouped(of_step, len(batches))
        elif self.on_policy is not None:
            of_step = batches = [collate(samples) for samples in batches]
        if self.shares is not None:
            self.weigh_parts(of_step, device)
            return batches, torch.tensor(1 / self.args.world_size, device=device)
        total = sum(batch["token_weights"].double().sum() for batch in of_step)
        if self.args.world_size > 1:
            total = self.accelerator.gather(torch.as_tensor(total, device=device)).sum() / self.args.world_size
        return batches, total

    def scored(self, samples: list[Any]) -> dict[str, Any]:
        """A batch of texts that the student has written, with the teacher's scores."""
        assert self.on_policy is not None
        batch = self.data_collator(samples)
        width = None if "lengths" in batch else batch["input_ids"].shape[1]
        return {**batch, SCORES: self.on_policy.scores(samples, width)}

    def cut_by_tokens(
        self, samples: list[Any], device: torch.device, collate: Callable
    ) -> list[dict[str, torch.Tensor]]:
        """Device batches of at most `tokens_per_batch` tokens for the samples of a step. Each process has the same
        number of them, because the processes compute together; batches without a loss make up the number."""
        lengths = [len(sample["input_ids"]) for sample in samples]
        cut = best_fit(lengths, self.tokens_per_batch, self.data_collator.cost)
        found = [collate([samples[index] for index in indices]) for indices in cut]
        if self.args.world_size > 1:
            count = self.accelerator.gather(torch.tensor([len(found)], device=device)).max()
            found += [self.data_collator([self.train_dataset[-1]]) for _ in range(int(count) - len(found))]
        return found

    def weigh_parts(self, batches: list[dict[str, torch.Tensor]], device: torch.device) -> None:
        """Change the token weights of a step so that those of each part sum to the part's weight over all processes."""
        totals_P = torch.zeros(len(PARTS), dtype=torch.float64, device=device)
        for batch in batches:
            totals_P += weights_by_part(batch).to(device)
        if self.args.world_size > 1:
            totals_P = self.accelerator.gather(totals_P[None]).sum(0)
        factors_P = torch.where(totals_P > 0, torch.tensor(self.shares, device=device) / totals_P, 0.0)
        for batch in batches:
            weights = batch["token_weights"]
            factors = factors_P.to(weights.device)[batch["parts"]]
            batch["token_weights"] = (weights * factors).to(weights.dtype)
        self.running.count_parts(totals_P > 0)

    # ---------------------------------------------------------------------------------------------------------- losses

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        samples_B = inputs.pop("samples")
        inputs["token_weights"] = inputs["token_weights"] / num_items_in_batch.float()
        setattr(base_model(self.model), SCORES, inputs.pop(SCORES, None))
        outputs = model(**inputs, use_cache=False)
        setattr(base_model(self.model), SCORES, None)
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            numbers = ", ".join(map(str, sorted(set(samples_B.tolist()))))
            raise UserError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1}, in a batch with the samples "
                f"{numbers}; the last checkpoint is unchanged; try a smaller learning rate, or look at these samples"
            )
        if self.model.training:
            if self.shares is not None:
                self.running.add_parts(base_model(self.model).part_losses)
            self.tokens += int(
                inputs["attention_mask"].sum() if "attention_mask" in inputs else inputs["input_ids"].numel()
            )
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = torch.zeros((), device=self.args.device)
        cut = inputs.get("batches", [inputs])
        is_sync = self.accelerator.sync_gradients
        alone = self.args.world_size == 1 or self.is_deepspeed_enabled  # DeepSpeed looks at `sync_gradients` itself
        for number, batch in enumerate(cut, 1):
            is_last = number == len(cut)
            self.accelerator.sync_gradients = is_sync and is_last
            with contextlib.nullcontext() if is_last or alone else self.accelerator.no_sync(model):
                loss = loss + super().training_step(model, batch, num_items_in_batch)
        self.running.add(loss)
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The weighted mean loss over all dev samples, however they are split over batches and processes."""
        self.model.eval()
        shares = torch.tensor(self.shares or (1.0,), dtype=torch.float64)
        sums = torch.zeros(2, len(shares), dtype=torch.float64)  # of each part: of weight x loss, and of the weights
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                inputs = self.prepared(batch)
                inputs.pop("samples")
                weights = inputs["token_weights"].sum()[None] if self.shares is None else weights_by_part(inputs)
                loss = self.model_wrapped(**inputs, use_cache=False)["loss"]
                losses = loss[None] if self.shares is None else base_model(self.model).part_losses
                sums += torch.stack([losses.double().cpu(), weights.double().cpu()])
        if self.args.world_size > 1:
            sums = self.accelerator.gather(sums.to(self.args.device)[None]).sum(0).cpu()
        means = torch.where(sums[1] > 0, sums[0] / sums[1], 0.0)
        metrics = {"eval_loss": float((means * shares).sum())}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            of_parts = {} if self.shares is None else self.running.means_of_parts(self.shares, self.all_mean)
            mean = self.running.mean(self.state.global_step, self.all_mean)
            logs = {**logs, "loss": mean, **of_parts, **self.speed()}
            if self.args.device.type == "cpu":  # only a CPU keeps freed memory (processes.py)
                give_back_freed_memory()
        super().log(logs, *args, **kwargs)

    def all_mean(self, numbers: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the processes."""
        return self.accelerator.gather(numbers[None]).mean(0) if self.args.world_size > 1 else numbers

    def speed(self) -> dict[str, float]:
        """Tokens per second (all processes, no padding) since the last call, share of the GPU's peak, and memory."""
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
        return sum(map(numbers, self.model.parameters()))

    # ---------------------------------------------------------------------------------- states from other processes

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer. The names of its parameters are kept, because DeepSpeed replaces them with flat tensors."""
        optimizer = super().create_optimizer(*args, **kwargs)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups = getattr(optimizer, "param_groups", ())  # an optimizer of DeepSpeed's configuration has none yet
        self.group_names = [[names[id(parameter)] for parameter in group["params"]] for group in groups]
        return optimizer

    def load_states(self, checkpoint: Path) -> None:
        """Load the states of a checkpoint that were saved by another library or number of processes."""
        assert self.resumed is not None
        with said_once():
            if self.resumed.saver.library == DEEPSPEED:
                whole = read_zero_states(checkpoint)
            else:
                whole = read_torch_states(checkpoint, self.group_names, self.read_weights(checkpoint))
                step = self.state.global_step
                samples = step * effective_batch(self.args)
                whole.counters = {"global_steps": step, "global_samples": samples, "skipped_steps": 0}
            parameters = {name: part for name, part in self.model.named_parameters() if part.requires_grad}
            whole.require({name: numbers_of(part) for name, part in parameters.items()})
            if self.is_deepspeed_enabled:
                load_whole_states(self.model_wrapped, whole)
            else:
                load_into_torch(whole, self.optimizer, self.group_names, parameters)
            if whole.schedule is None:
                saved = load_plain(checkpoint / SCHEDULER_NAME)
                self.lr_scheduler.load_state_dict(fitted_schedule(saved, self.lr_scheduler.state_dict()))

    def draw_anew(self) -> None:
        """Begin with random numbers that depend on the seed and the step: those of other processes do not fit."""
        set_seed((self.args.seed * 1_000_003 + self.state.global_step) % 2**32)

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the model, which is the first step of a checkpoint. The Trainer then saves the optimizer states."""
        self.require_finite()
        if self.args.should_save:
            make_anew(self.staging)
        self.accelerator.wait_for_everyone()
        self.running.average(self.all_mean)
        super().save_model(*args, **kwargs)

    def publish(self, whole: Path, checkpoint: Path) -> None:
        """Move a complete checkpoint to its final name."""
        if has_adapters(self.model):
            write_base_digest(whole, self.student)
        if self.merge_adapters and has_adapters(self.model):
            save_merged(self.accelerator.unwrap_model(self.model), self.processing_class, whole / MERGED)
        for folder in (whole, whole / MERGED) if self.is_chat else ():
            if folder.is_dir():
                write_record(folder)
        remove_arguments(whole)
        for file in files_below(whole):
            sync_file(file)
        shutil.rmtree(checkpoint, ignore_errors=True)
        os.rename(whole, checkpoint)
        sync_folder(checkpoint.parent)
        for marker in checkpoint.parent.glob(f"checkpoint-*/{INTERRUPTED}"):
            shutil.rmtree(marker.parent)
        best = best_step(self.state)
        keep_newest(
            checkpoint.parent, self.args.save_total_limit, checkpoint.parent / f"checkpoint-{best}" if best else None
        )
        shutil.rmtree(self.staging, ignore_errors=True)

    def require_finite(self) -> None:
        for name, part in self.model.named_parameters():
            if not torch.isfinite(part).all():
                raise UserError(
                    f"after step {self.state.global_step} the weights {name} are not finite; they are not saved, and "
                    "the last checkpoint is unchanged; try a smaller learning rate"
                )


class EpochOrder(TrainerCallback):
    """Gives each epoch its order of the samples, and a resumed training its own batch.

    Args:
        trainer: the trainer whose sampler is told the epoch.
    """

    def __init__(self, trainer: FinetuneTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.train_batch_size = args.train_batch_size  # a checkpoint of other processes may have another one

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.set_epoch()


class Publisher(TrainerCallback):
    """Moves a checkpoint to its place when all processes have written their parts of it.

    Args:
        trainer: the trainer that writes the checkpoints.
    """

    def __init__(self, trainer: FinetuneTrainer):
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        name = f"checkpoint-{state.global_step}"
        self.trainer.accelerator.wait_for_everyone()
        if args.should_save:
            self.trainer.publish(self.trainer.staging / name, Path(args.output_dir) / name)
        self.trainer.accelerator.wait_for_everyone()
