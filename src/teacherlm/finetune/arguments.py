"""The flags of finetune.py: those of this project, and all of transformers' TrainingArguments."""

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from teacherlm.core.errors import UserError, one_line
from teacherlm.core.flags import LIST_MISSING, Range, require_number
from teacherlm.core.redaction import is_secret
from teacherlm.finetune.known_flags import FORMER, HARMLESS, HELP, OPTIMIZERS, REFUSED, SCHEDULES_WITH_LOSS
from teacherlm.finetune.loss_parts import parse_shares
from teacherlm.finetune.optimizers import check_optimizer
from teacherlm.finetune.sets import parse_sets
from teacherlm.finetune.this_machine import for_this_machine
from teacherlm.runtime.compat.of_accelerate import gloo_for_deepspeed
from teacherlm.runtime.compat.of_trainer import use_one_gpu
from teacherlm.runtime.processes import say


@dataclass(frozen=True)
class FinetuneArguments:
    """The flags of this project: the student, the texts, and how the student is trained."""

    model_name_or_path: str = field(metadata={"help": "the student: a name in models/, a folder, or a hub id"})
    dataset_name: str = field(
        metadata={
            "help": "a datasets folder (save_to_disk); the split train of a DatasetDict is used. Several folders have "
            "commas between them, and each may have a weight or a maximum number of samples per epoch: "
            "A,B:0.5,C:max1000"
        }
    )
    task_type: str = field(
        metadata={
            "help": "the texts to train on: one field of the dataset (text, cot_tail, ...); a mixture of fields, with "
            "the number of times that an epoch has each sample (text:1,cot_tail:2); or a curriculum, in which an epoch "
            "has one field after the other (text,cot_tail)"
        }
    )
    chat: str | None = field(
        default=None,
        metadata={
            "help": "true: each text becomes a conversation by the student's chat template, and only the assistant's "
            "turn has a loss; false: plain texts; auto: conversations if the tokenizer has a chat template (default: "
            "finetune.chat of models/NAME.yaml, otherwise false)"
        },
    )
    max_source_length: int = field(
        default=2048, metadata={"help": "maximum number of tokens per sample; longer samples lose tokens on their left"}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "maximum number of samples; the first ones are used"}
    )
    test_sets: str | None = field(
        default=None,
        metadata={
            "help": "folders of test sets that data_prepare.py made, with commas between them; training samples with a "
            "piece of their questions are listed in repeated.jsonl"
        },
    )
    overlaps: str = field(
        default="keep", metadata={"help": "train on the samples that --test_sets finds, or leave them out (leave_out)"}
    )
    explanations: str = field(
        default="all",
        metadata={
            "help": "all: an epoch has all rows of the dataset; each_epoch: the dataset has a row per text "
            "(data_prepare.py --explanations each_epoch), and an epoch has one text of each sample, another one in the "
            "next epoch"
        },
    )
    end_of_text: bool = field(
        default=False,
        metadata={
            "help": "end each text with the end-of-text token, also if the tokenizer adds none, so that the student "
            "learns to end its answers"
        },
    )
    loss_on: str = field(
        default="all", metadata={"help": "train on all of the text, or on the completion after the question only"}
    )
    loss_average: str = field(
        default="token",
        metadata={
            "help": "what has the same weight in the loss of a step: every token, every sample, or every batch of a "
            "device (batch is the reference's mean)"
        },
    )
    loss_weights: str | None = field(
        default=None,
        metadata={
            "help": "PART:WEIGHT,PART:WEIGHT: the loss is the weighted sum of the means over these parts of the texts "
            "(question, answer, explanation), such as answer:0.5,explanation:0.5; other parts have no loss"
        },
    )
    kl_weight: float = field(
        default=0.0,
        metadata={
            "help": "W: the loss of a token that the teacher wrote is (1 - W) x cross-entropy + W x KL divergence from "
            "the teacher's distribution, which enhance.py --top_logprobs has kept (same vocabulary)"
        },
    )
    on_policy: float = field(
        default=0.0,
        metadata={
            "help": "the share of steps in which the student writes the texts itself, after the samples' questions, "
            "and learns the distribution of --teacher at each token"
        },
    )
    teacher: str | None = field(
        default=None,
        metadata={"help": "--on_policy: the teacher, as the student a name in models/, a folder or a hub id"},
    )
    on_policy_tokens: int = field(
        default=128, metadata={"help": "--on_policy: maximum number of tokens that the student writes per text"}
    )
    tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "divide the samples of each step among device batches of at most this number of tokens, instead of "
            "--per_device_train_batch_size samples each; a step has the same samples and the same loss"
        },
    )
    packing: bool = field(
        default=True, metadata={"help": "pack samples without padding; false pads them, as the reference does"}
    )
    attention: str = field(
        default="sdpa", metadata={"help": "the attention of packed batches: sdpa, eager or flash_attention_2"}
    )
    peft: str = field(
        default="none",
        metadata={
            "help": "train adapters only: lora, or qlora (with the weights in 4 bits, on a GPU); none trains all"
        },
    )
    peft_rank: int = field(default=16, metadata={"help": "rank of the adapters"})
    merge_adapters: bool = field(
        default=False,
        metadata={"help": "write a folder merged/ into each checkpoint: the student with its adapters added"},
    )
    dev_dataset: str | None = field(
        default=None,
        metadata={
            "help": "a datasets folder whose loss is computed after each epoch; not the split train of a DatasetDict"
        },
    )
    shuffle: bool = field(
        default=True,
        metadata={"help": "shuffle the samples in each epoch; false keeps the dataset's order, as the reference does"},
    )
    early_stop: int | None = field(
        default=None, metadata={"help": "stop after this number of epochs without a better loss on --dev_dataset"}
    )
    list_missing: bool = field(default=False, metadata={"help": LIST_MISSING})
    restart: bool = field(
        default=False,
        metadata={"help": "begin again if the folder has checkpoints with other settings; that folder is renamed"},
    )


CHOICES = {
    "chat": ("auto", "true", "false"),
    "overlaps": ("keep", "leave_out"),
    "explanations": ("all", "each_epoch"),
    "loss_on": ("all", "completion"),
    "loss_average": ("token", "sample", "batch"),
    "attention": ("sdpa", "eager", "flash_attention_2"),
    "peft": ("none", "lora", "qlora"),
    "save_strategy": ("epoch", "steps"),
}

RANGES: dict[str, Range] = {
    "max_source_length": {"least": 2},
    "max_train_samples": {"least": 1},
    "peft_rank": {"least": 1},
    "tokens_per_batch": {"least": 2},
    "early_stop": {"least": 1},
    "kl_weight": {"least": 0, "most": 1},
    "on_policy": {"least": 0, "most": 1},
    "on_policy_tokens": {"least": 1},
    "per_device_train_batch_size": {"least": 1},
    "per_device_eval_batch_size": {"least": 1},
    "gradient_accumulation_steps": {"least": 1},
    "num_train_epochs": {"above": 0},
    "learning_rate": {"least": 0},
    "warmup_steps": {"least": 0},
    "weight_decay": {"least": 0},
    "adam_beta1": {"least": 0, "below": 1},
    "adam_beta2": {"least": 0, "below": 1},
    "adam_epsilon": {"least": 0},
    "max_grad_norm": {"least": 0},
    "neftune_noise_alpha": {"above": 0},
    "logging_steps": {"above": 0},
    "save_steps": {"above": 0},
    "save_total_limit": {"least": 1},
    "torch_empty_cache_steps": {"least": 1},
    "seed": {"least": 0, "most": 2**32 - 1},
    "dataloader_num_workers": {"least": 0},
    "dataloader_prefetch_factor": {"least": 1},
    "ddp_timeout": {"least": 1},
}


ACCEPTED: dict[str, tuple[str, ...]] = CHOICES | {"optim": OPTIMIZERS, "deepspeed": ("NAME", "PATH", "none")}
"""The values of flags as --help shows them."""

OWN, NUMBERS, NO_NUMBERS = (
    "what is trained on what",
    "transformers' TrainingArguments that may change a checkpoint's numbers",
    "transformers' TrainingArguments that change no number",
)
EXAMPLE = """\
example:
  teacherlm finetune --model_name_or_path smollm2-135m --dataset_name CREAK --task_type cot_tail --output_dir run"""


class FinetuneParser(HfArgumentParser):
    """transformers' parser of all flags; --help has them in groups, without those that are refused."""

    def __init__(self) -> None:
        self.titled: dict[str, Any] = {}
        super().__init__(
            (FinetuneArguments, TrainingArguments),
            description="Finetune a student on the texts of a dataset, a checkpoint an epoch.",
            epilog=EXAMPLE,
            usage="%(prog)s --model_name_or_path MODEL --dataset_name FOLDER --task_type FIELD --output_dir FOLDER "
            "[FLAG ...]",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        if "--help" in names:
            return super().add_argument(*names, **settings)
        names = names[:1]  # the rest is the same with hyphens, of which `underscored` makes the first
        name = names[0].removeprefix("--")
        field = name if name in ALL_FIELDS else name.removeprefix("no_")
        if field in REFUSED:
            settings["help"] = argparse.SUPPRESS
        else:
            settings |= shown_settings(name, field, settings.get("choices"))
        title = OWN if field in OWN_FIELDS else NO_NUMBERS if field in HARMLESS else NUMBERS
        if not self.titled:
            self.titled |= {one: self.add_argument_group(one) for one in (OWN, NUMBERS, NO_NUMBERS)}
        return self.titled[title].add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        refuse(message)  # the library's own answer is the usage of 130 flags


def shown_settings(name: str, field: str, choices: Sequence[Any] | None) -> dict[str, Any]:
    """What --help says about a flag, where the library's text would list values that are refused here.

    Args:
        name: the flag; `no_packing` is the negation of the field `packing`.
        choices: the values that the library accepts, or None.
    """
    if name != field:
        return {"help": f"the same as --{field} false"}
    accepted = ACCEPTED.get(field)
    if field == "lr_scheduler_type" and choices:
        accepted = tuple(one for one in map(str, choices) if one not in SCHEDULES_WITH_LOSS)
    found = {"metavar": f"{{{','.join(accepted)}}}"} if accepted else {}
    return found | ({"help": HELP[field]} if field in HELP else {})


OWN_FIELDS = {one.name for one in dataclasses.fields(FinetuneArguments)}
ALL_FIELDS = OWN_FIELDS | {one.name for one in dataclasses.fields(TrainingArguments)}


def parse_arguments(argv: list[str], tell: Callable[[str], None] = say) -> tuple[FinetuneArguments, TrainingArguments]:
    """Parse and check the flags.

    `--lr constant` is the reference's short form of `--lr_scheduler_type constant`. Features that the machine does not
    have are switched off with a message: without a GPU these are fp16, tf32, DeepSpeed in a single process, and bf16 in
    several processes; wandb is switched off if it is not installed.

    Args:
        tell: prints a message.

    Raises:
        UserError: a flag is unknown, its value is out of range, or the flag would have no effect.
    """
    parser = FinetuneParser()
    argv = ["--lr_scheduler_type" if word == "--lr" else word for word in map(underscored, argv)]
    argv = without_former_flags(argv)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        refuse(f"unknown: {' '.join(unknown)}")
    values = vars(namespace)
    given = set_flags(parser, values)
    check_values(values)
    check_effects(given)
    argv = for_this_machine(argv, tell)
    try:
        with gloo_for_deepspeed() if "--deepspeed" in argv else contextlib.nullcontext():
            flags, training = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except ValueError as error:  # TrainingArguments found values that contradict one another
        refuse(one_line(error))
    check_optimizer(training, given)
    if flags.merge_adapters and training.deepspeed and training.hf_deepspeed_config.is_zero3():
        raise UserError("--merge_adapters needs whole weights on each GPU: use a --deepspeed other than zero3")
    if flags.on_policy and training.deepspeed and training.hf_deepspeed_config.is_zero3():
        raise UserError("--on_policy needs whole weights in each process: use a --deepspeed other than zero3")
    training.remove_unused_columns = False  # the collators use columns that the model does not know
    use_one_gpu(training)  # finetune.sh starts one process per GPU
    return flags, training


def with_division(argv: list[str], batch: int, accumulation: int) -> TrainingArguments:
    """The arguments of the library with another device batch and accumulation than the flags have.

    They are made anew, because DeepSpeed's configuration has these numbers too.
    """
    divided = ["--per_device_train_batch_size", str(batch), "--gradient_accumulation_steps", str(accumulation)]
    return parse_arguments([*argv, *divided], tell=lambda _: None)[1]


def set_flags(parser: HfArgumentParser, values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags whose parsed value differs from the default."""
    fields = [one for kind in (FinetuneArguments, TrainingArguments) for one in dataclasses.fields(kind) if one.init]
    required = [one.name for one in fields if one.default is one.default_factory is dataclasses.MISSING]
    defaults = vars(parser.parse_args([word for name in required for word in (f"--{name}", "")]))
    return {name: value for name, value in values.items() if value != defaults[name]}


def underscored(word: str) -> str:
    """A flag with underscores in its name: `--report-to` becomes `--report_to`."""
    if not word.startswith("--"):
        return word
    name, mark, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + mark + value


def without_former_flags(argv: list[str]) -> list[str]:
    """The flags without those of FORMER, which ask for something that is always done here.

    Raises:
        UserError: one of them asks for something else; the message names the replacement.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in FORMER:
        parser.add_argument(f"--{name}", nargs="?", const="true")
    former, rest = parser.parse_known_args(argv)
    for name, value in vars(former).items():
        accepted, instead = FORMER[name]
        if accepted is not None and value.lower() != accepted.lower():
            raise UserError(f"--{name} {value}: this finetune.py does not have the flag: {instead}")
    return rest


def check_values(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, float) or name in RANGES:
            require_number(name, value, **RANGES.get(name, {}))
    if values["max_steps"] != -1:
        require_number("max_steps", values["max_steps"], least=1)
    for name, choices in CHOICES.items():
        value = values[name]
        if value is not None and getattr(value, "value", value) not in choices:
            raise UserError(f"--{name}: {' or '.join(choices)} was expected, found {value!r}")


def check_effects(given: Mapping[str, Any]) -> None:
    """Refuse secrets, and flags that would have no effect, so that nobody believes that they had one.

    Args:
        given: flags whose value differs from their default.

    Raises:
        UserError: the message says what to use instead, if there is something.
    """
    for name in given:
        if name in REFUSED:
            raise UserError(f"--{name} is not supported here: {REFUSED[name]}; leave it out")
        if is_secret(name):
            raise UserError(
                f"--{name}: everybody on a machine can read its commands, and checkpoints keep their flags; leave the "
                "flag out and set the variable that the library reads (HF_TOKEN, WANDB_API_KEY)"
            )
    needs = {  # flag -> the flag and values that it needs
        "early_stop": ("dev_dataset", None),
        "overlaps": ("test_sets", None),
        "on_policy": ("teacher", None),
        "teacher": ("on_policy", None),
        "on_policy_tokens": ("on_policy", None),
        "peft_rank": ("peft", ("lora", "qlora")),
        "merge_adapters": ("peft", ("lora",)),  # nothing can be added to qlora's weights in 4 bits
        "gradient_checkpointing_kwargs": ("gradient_checkpointing", None),
    }
    for name, (other, values) in needs.items():
        if name in given and (other not in given or (values and given[other] not in values)):
            raise UserError(f"--{name} needs --{other}{' ' + ' or '.join(values) if values else ''}")
    if len(parse_sets(given["dataset_name"])) > 1 and "max_train_samples" in given:
        raise UserError("--max_train_samples: with several datasets, each takes a maximum of its own: FOLDER:maxN")
    if "loss_weights" in given:
        parse_shares(given["loss_weights"])
        if "loss_on" in given:
            raise UserError("--loss_on has no effect with --loss_weights, which says what has a loss; leave it out")
    if "on_policy" in given and "loss_weights" in given:
        raise UserError("--loss_weights: what the student writes has no parts; leave out --on_policy or --loss_weights")
    if "tokens_per_batch" in given and given.get("loss_average") == "batch":
        raise UserError("--tokens_per_batch: --loss_average batch is the mean of batches of samples; leave one out")
    schedule = getattr(given.get("lr_scheduler_type"), "value", given.get("lr_scheduler_type"))
    if schedule in SCHEDULES_WITH_LOSS:
        raise UserError(f"--lr {schedule} is not supported here: it needs the loss of an evaluation at each step")
    if given.get("packing") is False and "attention" in given:
        raise UserError("--attention has no effect with --packing false: padded batches use the library's attention")
    if "neftune_noise_alpha" in given and given.get("packing") is not False:
        raise UserError(
            "--neftune_noise_alpha needs --packing false: its noise is scaled by the length of a row, and a packed row "
            "holds several samples"
        )


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; finetune.py --help lists the flags")
