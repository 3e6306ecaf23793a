"""What identifies a finetuning run: every flag that changes a number in its checkpoints, in the form of the manifest.

All flags are recorded except those that known_flags.py lists as HARMLESS or REFUSED. The values are JSON and the same
on every machine: they contain no paths, host names or numbers of devices.
"""

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from teacherlm.core.json_files import require_object
from teacherlm.core.redaction import without_named
from teacherlm.finetune.arguments import FinetuneArguments
from teacherlm.finetune.known_flags import DERIVED, FIXED_SCHEDULES, HARMLESS, REFUSED
from teacherlm.finetune.sets import parse_sets

NOT_RECORDED = {
    # inputs, whose digests the manifest has:
    "model_name_or_path", "dataset_name", "dev_dataset", "test_sets", "teacher",
    "early_stop",  # see `lengths`
    "chat",  # it is recorded as what it means for the student
    "tokens_per_batch",  # changes only rounding
    "list_missing", "restart",  # change no number
}  # fmt: skip
"""Flags of this project's finetune.py that are not recorded."""

OF_THE_MACHINE = ("effective_batch", "precision", "tf32", "deepspeed")
"""Recorded arguments that depend on the machine's GPUs. A cluster's login node cannot determine them."""

SIZES_AND_SPEED = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print",
    "wall_clock_breakdown", "dump_state", "comms_logger", "flops_profiler", "tensorboard", "wandb", "csv_monitor",
    "checkpoint", "aio", "activation_checkpointing", "memory_breakdown",
    # from the section zero_optimization
    "stage", "overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "allgather_partitions",
    "allgather_bucket_size", "load_from_fp32_weights", "offload_optimizer", "offload_param", "cpu_offload",
    "sub_group_size", "round_robin_gradients", "memory_efficient_linear", "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "ignore_unused_parameters",
}  # fmt: skip
"""Settings of a DeepSpeed configuration that change how work is distributed, stored and reported, but no numbers."""
LOSS_SCALING = {"loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"}
"""Settings of DeepSpeed's section fp16. The scale only decides which steps float16 skips. The precision is recorded."""


def recorded_arguments(flags: FinetuneArguments, training: TrainingArguments) -> dict[str, Any]:
    """The arguments that the checkpoints depend on. The run's length is included only if the schedule depends on it."""
    arguments = {name: plain(getattr(training, name)) for name in recorded_flags(training)}
    arguments |= {name: plain(getattr(flags, name)) for name in own_flags()}
    arguments["chat"] = flags.chat == "true"
    arguments["effective_batch"] = effective_batch(training)
    arguments["precision"] = "bf16" if training.bf16 else "fp16" if training.fp16 else "fp32"
    arguments["deepspeed"] = deepspeed_settings(training.deepspeed)
    shares = [one.share for one in parse_sets(flags.dataset_name)]
    if shares != ["1"]:
        arguments["shares"] = shares
    if flags.loss_average == "batch":  # the mean within each batch of a device
        arguments["per_device_train_batch_size"] = training.per_device_train_batch_size
        if flags.dev_dataset:
            arguments["per_device_eval_batch_size"] = training.per_device_eval_batch_size
    if length_matters(training):
        arguments |= {name: value for name, value in lengths(flags, training).items() if name != "early_stop"}
    return arguments


def lengths(flags: FinetuneArguments, training: TrainingArguments) -> dict[str, Any]:
    """The length of the run. A longer run continues a shorter one, unless `length_matters`."""
    epochs = {"num_train_epochs": training.num_train_epochs, "max_steps": training.max_steps}
    return {**epochs, "early_stop": flags.early_stop}


def length_matters(training: TrainingArguments) -> bool:
    """Whether the learning rate of a step depends on the number of all steps. Then a longer run is a different run."""
    return training.lr_scheduler_type.value not in FIXED_SCHEDULES or 0 < training.warmup_steps < 1


def recorded_flags(training: TrainingArguments | type[TrainingArguments]) -> list[str]:
    names = (field.name for field in dataclasses.fields(training) if field.init)
    return [name for name in names if name not in HARMLESS | DERIVED | REFUSED.keys()]


def own_flags() -> list[str]:
    return [field.name for field in dataclasses.fields(FinetuneArguments) if field.name not in NOT_RECORDED]


def effective_batch(training: TrainingArguments) -> int:
    """Number of samples per step. How they are split over devices and accumulated batches changes only rounding."""
    return training.train_batch_size * training.gradient_accumulation_steps * training.world_size


def plain(value: Any) -> Any:
    """A value in its JSON form, without secrets."""
    return without_named(value.value if isinstance(value, enum.Enum) else value)


def deepspeed_settings(config: str | dict[str, Any] | None) -> dict[str, Any]:
    """The settings of a DeepSpeed configuration that change numbers.

    Of the configurations in finetune/deepspeed/ only zero3_offload has such settings: it uses DeepSpeed's optimizer.
    The value "auto" stands for a flag, which is recorded separately.
    """
    if config is None:
        return {}
    if isinstance(config, (str, Path)):
        config = require_object(Path(config))
    found = {}
    for name, value in config.items():
        if isinstance(value, dict):
            value = deepspeed_settings(value)
        if name in SIZES_AND_SPEED | LOSS_SCALING or value in ("auto", {}):
            continue
        found[name] = value
    return found


def with_defaults(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest or run.json, completed with the defaults of flags that were added after it was written.

    If the recorded command names such a flag, the flag is not added, because its value in that run is unknown.
    """
    kinds = {TrainingArguments: recorded_flags(TrainingArguments), FinetuneArguments: own_flags()}
    named = {word.split("=")[0].lstrip("-").replace("-", "_") for word in manifest.get("command", ())}
    defaults: dict[str, Any] = {"deepspeed": {}, "chat": False}
    for kind, names in kinds.items():
        for field in dataclasses.fields(kind):
            if field.name in names and field.name not in named and field.default is not dataclasses.MISSING:
                defaults[field.name] = plain(field.default)
    return {**manifest, "arguments": {**defaults, **manifest.get("arguments", {})}}
