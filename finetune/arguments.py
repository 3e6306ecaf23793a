"""The flags of finetune.py: three of its own beside all of transformers' TrainingArguments."""

import argparse
import importlib.util
import os
import sys
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments

from teacherlm.errors import UserError, reason


@dataclass
class FinetuneArguments:
    """What is finetuned on what."""

    model_name_or_path: str = field(metadata={"help": "the student: a name in models/, a folder, or a hub id"})
    dataset_name: str = field(metadata={"help": "a datasets folder (save_to_disk); of a DatasetDict the split train"})
    task_type: str = field(metadata={"help": "the field of the dataset that is trained on: text, cot_tail, ..."})
    max_source_length: int = field(default=2048, metadata={"help": "longer samples lose tokens at their left"})
    max_train_samples: int | None = field(default=None, metadata={"help": "the first so many samples only"})
    restart: bool = field(
        default=False, metadata={"help": "keep checkpoints that were made with other settings beside, begin anew"}
    )


def parse_arguments(argv: list[str]) -> tuple[FinetuneArguments, TrainingArguments]:
    """Parse and check the flags.

    `--lr constant` is the reference's short form of `--lr_scheduler_type constant`. What the machine cannot do is
    switched off and said: fp16, bf16 and DeepSpeed without a GPU, wandb where it is not installed.

    Raises:
        UserError: an unknown flag or a value out of its range.
    """
    parser = HfArgumentParser(
        (FinetuneArguments, TrainingArguments), description=__doc__, allow_abbrev=False, prog="finetune.py"
    )
    parser.error = refuse  # HfArgumentParser's own answer is the usage of 130 flags
    argv = ["--lr_scheduler_type" if word == "--lr" else word for word in argv]
    try:
        own, training, unknown = parser.parse_args_into_dataclasses(
            without_the_impossible(argv), return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:  # of TrainingArguments: values that do not go together
        refuse(reason(error))
    if unknown:
        refuse(f"unknown: {' '.join(unknown)}")
    if training.eval_strategy != "no":
        raise UserError("--eval_strategy: 'no' was expected; the scripts in evaluate/ score the checkpoints")
    for name, low in (("max_source_length", 2), ("max_train_samples", 1)):
        value = getattr(own, name)
        if value is not None and value < low:
            raise UserError(f"--{name}: at least {low} was expected, found {value}")
    if training.per_device_train_batch_size < 1 or training.gradient_accumulation_steps < 1:
        raise UserError(
            "--per_device_train_batch_size and --gradient_accumulation_steps: positive numbers were expected"
        )
    return own, training


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; finetune.py --help lists the flags")


def without_the_impossible(argv: list[str]) -> list[str]:
    """The flags without those that need what is not here, and what the machine needs instead."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--fp16", nargs="?", const="true", default="false")
    early.add_argument("--bf16", nargs="?", const="true", default="false")
    early.add_argument("--deepspeed")
    early.add_argument("--report_to", default="none")
    known, rest = early.parse_known_args(argv)
    if not torch.cuda.is_available():
        wanted = [flag for flag in ("fp16", "bf16") if getattr(known, flag).lower() in ("true", "1", "yes")]
        wanted += ["deepspeed"] if known.deepspeed else []
        what = f"; --{' and --'.join(wanted)} left out" if wanted else ""
        print(f"finetune: no GPU here: training in one process on the CPU, in float32{what}")
        rest += ["--use_cpu", "true"]
    else:
        rest += ["--fp16", known.fp16, "--bf16", known.bf16]
        if known.deepspeed:
            if importlib.util.find_spec("deepspeed") is None:
                raise UserError(
                    "--deepspeed: the package deepspeed is not installed; pip install deepspeed, or leave it out"
                )
            rest += ["--deepspeed", known.deepspeed]
    if known.report_to == "wandb" and importlib.util.find_spec("wandb") is None:
        print(
            "finetune: wandb is not installed: the losses go to log.jsonl only (pip install -e .[tracking] brings it)"
        )
        known.report_to = "none"
    if known.report_to == "wandb" and not os.environ.get("WANDB_API_KEY"):
        os.environ.setdefault("WANDB_MODE", "offline")  # without a key it would stop and ask
    interactive = sys.stderr.isatty()
    return [*rest, "--report_to", known.report_to, "--disable_tqdm", str(not interactive)]
