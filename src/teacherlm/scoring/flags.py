"""The flags of an evaluation, checked as they are read."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.flags import HIDDEN, LIST_MISSING, flag, parse, share_of
from teacherlm.scoring.task_inputs import DATASETS

FAMILIES = ("hf", "hf-causal", "hf-causal-experimental", "bloom", "opt")
DTYPES = ("float32", "bfloat16", "float16")
WHAT, HOW, FAST = "what is scored", "how it is asked", "which part, where and how fast"


def read_model(text: str) -> tuple[str, str | None]:
    """The model and the dtype of `pretrained=MODEL[,dtype=DTYPE]`; a comma that belongs to MODEL stays in it."""
    if re.search(r"(^|,)\s*trust_remote_code\s*=", text):
        raise UserError("--model_args: trust_remote_code: code from a model's folder is never run here; leave it out")
    text, mark, dtype = text.rpartition(",dtype=")
    if not mark:
        text, dtype = dtype, ""
    key, _, model = text.partition("=")
    if key != "pretrained" or not model or (mark and dtype not in DTYPES):
        raise UserError(f"--model_args: pretrained=MODEL[,dtype=...] was expected, found {text + mark + dtype!r}")
    return model, dtype or None


def read_tasks(text: str) -> tuple[str, ...]:
    """The names of --tasks, with commas."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UserError("--tasks: at least one name was expected")
    return names


def read_batch_size(text: str) -> int | None:
    """A number of inputs; None: what the device can hold."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch_size: a positive number or auto was expected, found {text!r}")
    return int(text)


@dataclass(frozen=True)
class EvaluateFlags:
    """Which models are scored on which tasks, and how."""

    model: str = flag("hf", choices=FAMILIES, help="the family; all load alike", group=WHAT)
    model_args: tuple[str, str | None] = flag(
        parse=read_model,
        help="pretrained=MODEL: a name in models/, a folder, or a hub id; dtype=... as --dtype",
        group=WHAT,
    )
    tasks: tuple[str, ...] = flag(
        parse=read_tasks,
        help="names with commas: of task files, tasks in them, benchmarks/, lm-eval's own; 'mmlu_*' for all that match",
        group=WHAT,
    )
    checkpoints: Path | None = flag(None, help="score each checkpoint-N of this folder too", group=WHAT)
    watch: bool = flag(False, help="wait for more of the --checkpoints until their finetuning has ended", group=WHAT)
    output_path: Path = flag(Path("results"), help="folder of the results (default: results)", group=WHAT)
    datasets: Path = flag(
        DATASETS, help="folder of the test sets (default: lm_eval/datasets beside this file)", group=WHAT
    )
    include_path: Path | None = flag(None, help="a folder with more task files", group=WHAT)
    num_fewshot: int | None = flag(
        None, help="examples before each question (default: 0, or what lm-eval's own task has)", least=0, group=HOW
    )
    batch_size: int | None = flag(
        None, parse=read_batch_size, help="inputs at once, at most (default: auto: by the device)", group=FAST
    )
    tokenization: str = flag(
        "auto",
        choices=("auto", "apart", "joint"),
        help="of context and choice: apart, as the reference; joint, as lm-eval and as students are trained; auto "
        "(default): apart where both give the same tokens, else joint",
        group=HOW,
    )
    joint_tokenization: bool = flag(False, help="the same as --tokenization joint", group=HOW)
    permutations: str = flag(
        "none",
        choices=("none", "cyclic", "all"),
        help="ask each question with its choices in several orders, and average (default: none)",
        group=HOW,
    )
    shard: tuple[int, int] = flag(
        (0, 1), parse=share_of, help="I/N: the Ith of N shares, 0 the first; the last to end merges", group=FAST
    )
    device: str | None = flag(
        None, help="cpu, cuda, or the number of a GPU (default: a GPU when there is one)", group=FAST
    )
    dtype: str = flag("float32", choices=DTYPES, help="data type of the weights (default: float32)", group=FAST)
    limit: int | None = flag(
        None, help="the first so many samples only: for trying out, not for results", least=1, group=WHAT
    )
    seed: int = flag(0, help="draws the few-shot examples", least=0, group=HOW)
    list_missing: bool = flag(False, help=LIST_MISSING, group=FAST)
    no_cache: bool = flag(False, help=HIDDEN)  # the reference's; there is no cache

    @property
    def pretrained(self) -> str:
        """The model, as it is named."""
        return self.model_args[0]


def read_flags(description: str | None) -> EvaluateFlags:
    """Read the flags, and put what a flag says in two ways in one place."""
    flags = parse(
        EvaluateFlags,
        description,
        example="teacherlm evaluate --model hf --model_args pretrained=smollm2-135m --tasks creak --limit 100",
    )
    _, dtype = flags.model_args
    tokenization = "joint" if flags.joint_tokenization else flags.tokenization
    return replace(flags, dtype=dtype or flags.dtype, tokenization=tokenization)
