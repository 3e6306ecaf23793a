"""The program behind finetune.sh: start one process per GPU, and try again with a smaller batch if memory runs out.

This module needs only the standard library; see runtime/launcher.py.
"""

import os
import sys

from teacherlm.core.errors import UserError
from teacherlm.runtime.launcher import launch, processes_here, program, require_number

OUT_OF_MEMORY = 76
"""Exit code of a finetuning that ran out of memory. AUTO_BATCH=1 then tries a smaller batch."""
POSITIONAL = 10
USAGE = """\
usage: teacherlm finetune-here MODEL DATASET PER_DEVICE_BATCH ACCUMULATION LR EPOCHS TASK_TYPE RUN_NAME STORE_DIR
                               WANDB_PROJECT [FLAG ...]
       (the same as finetune.sh, whose --help says more; FLAG ... as teacherlm finetune --help lists them)

example:
  teacherlm finetune-here smollm2-135m enhance/CREAK 8 1 1e-5 10 cot_tail run store test
"""


def main() -> int:
    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(words) < POSITIONAL:
        raise UserError(f"{POSITIONAL} arguments were expected, found {len(words)}; finetune.sh --help lists them")
    model, dataset, batch, accumulation, learning_rate, epochs, task_type, name, store, project = words[:POSITIONAL]
    os.environ["WANDB_PROJECT"] = project
    processes = processes_here()
    further = words[POSITIONAL:]
    while True:
        flags = ["--model_name_or_path", model, "--dataset_name", dataset]
        flags += ["--per_device_train_batch_size", batch, "--gradient_checkpointing", "true"]
        flags += ["--gradient_accumulation_steps", accumulation, "--learning_rate", learning_rate, "--lr", "constant"]
        flags += ["--do_train", "--num_train_epochs", epochs, "--task_type", task_type, "--max_source_length", "2048"]
        flags += ["--run_name", name, "--output_dir", f"{store}/{name}", "--save_strategy", "epoch"]
        flags += given("--peft", "PEFT") + given("--save_total_limit", "SAVE_TOTAL_LIMIT")
        flags += ["--logging_steps", "8", "--report_to", "wandb"]
        status = launch([*program("finetune"), *flags, *further], processes)
        if status != OUT_OF_MEMORY or os.environ.get("AUTO_BATCH") != "1":
            return status
        if (tokens := tokens_per_batch(further)) is not None:
            further += ["--tokens_per_batch", str(tokens // 2)]  # the last one counts
            print(f"finetune.sh: trying again with batches of {tokens // 2} tokens", flush=True)
            continue
        samples = require_number("PER_DEVICE_BATCH", batch, 1)
        steps = require_number("ACCUMULATION", accumulation, 1)
        if samples == 1 or samples % 2:
            return status
        batch, accumulation = str(samples // 2), str(steps * 2)
        print(
            f"finetune.sh: trying again with a batch of {batch} and {accumulation} accumulated batches per step",
            flush=True,
        )


def tokens_per_batch(flags: list[str]) -> int | None:
    """The value of --tokens_per_batch, if it is among the flags."""
    found = None
    for word, after in zip(flags, [*flags[1:], ""]):
        name, _, value = word.replace("-", "_").partition("=")
        if name == "__tokens_per_batch":
            found = require_number("--tokens_per_batch", value or after, 1)
    return found


def given(flag: str, variable: str) -> list[str]:
    """A flag with the value of an environment variable; empty if the variable is not set."""
    value = os.environ.get(variable)
    return [flag, value] if value else []
