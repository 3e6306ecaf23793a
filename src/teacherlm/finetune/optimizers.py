"""Check the flags of the optimizer and of the learning rate schedule before anything is loaded."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from teacherlm.core.errors import UserError, one_line
from teacherlm.core.json_files import require_object
from teacherlm.finetune.known_flags import OPTIMIZERS


def check_optimizer(training: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Refuse an optimizer or schedule that cannot be created, and flags that the chosen one ignores.

    Args:
        given: flags whose value differs from their default.

    Raises:
        UserError: the message names the flag.
    """
    name = training.optim.value
    if name not in OPTIMIZERS:
        raise UserError(f"--optim {name} is not supported here; there are: {', '.join(OPTIMIZERS)}")
    configured = configured_sections(training)
    if "optimizer" in configured and {"optim", "optim_args"} & given.keys():
        raise UserError(
            f"--optim has no effect with --deepspeed {training.deepspeed}, which names an optimizer; leave one out"
        )
    if "scheduler" in configured:
        raise UserError(
            f"{training.deepspeed}: remove its section `scheduler`; --lr_scheduler_type and --warmup_steps set the "
            "learning rate"
        )
    check_optimizer_options(training, given)
    check_schedule(training, given)


def configured_sections(training: TrainingArguments) -> set[str]:
    """The sections of the DeepSpeed configuration, if there is one."""
    return set(require_object(Path(training.deepspeed))) if training.deepspeed else set()


def check_optimizer_options(training: TrainingArguments, given: Mapping[str, Any]) -> None:
    name = training.optim.value
    pairs = [pair for pair in (training.optim_args or "").replace(" ", "").split(",") if pair]
    for pair in pairs:
        if pair.count("=") != 1 or pair.lower().endswith(("=", "=nan", "=inf", "=-inf")):
            raise UserError(f"--optim_args: NAME=VALUE,NAME=VALUE was expected, found {pair!r}")
    try:
        chosen = Trainer.get_optimizer_cls_and_kwargs(training)
        without = {
            f"--optim_args {pair}": {"optim_args": ",".join(other for other in pairs if other != pair)}
            for pair in pairs
        }
        without |= {f"--{flag}": {flag: 0.5} for flag in ("adam_beta1", "adam_beta2", "adam_epsilon") if flag in given}
        for flag, changed in without.items():
            other = copy.copy(training)
            for field, value in changed.items():
                setattr(other, field, value if getattr(other, field) != value else value / 2)
            if Trainer.get_optimizer_cls_and_kwargs(other) == chosen:
                raise UserError(f"{flag} has no effect with --optim {name}; leave it out")
        optimizer, kwargs = chosen
        optimizer([torch.nn.Parameter(torch.zeros(1))], **kwargs)
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"--optim {name}: {one_line(error)}") from error


def check_schedule(training: TrainingArguments, given: Mapping[str, Any]) -> None:
    name = training.lr_scheduler_type.value
    if name == "constant" and "warmup_steps" in given:
        raise UserError("--warmup_steps has no effect with --lr constant; use --lr constant_with_warmup")
    if name.startswith("constant") and "lr_scheduler_kwargs" in given:
        raise UserError(f"--lr_scheduler_kwargs has no effect with --lr {name}; leave it out")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(name, optimizer, 1, 10, training.lr_scheduler_kwargs)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"--lr {name}: {one_line(error)}") from error
