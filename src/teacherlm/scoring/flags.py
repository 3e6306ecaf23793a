"""The flags of an evaluation and their checks."""

import re
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path

from teacherlm.catalog.models import CHAT
from teacherlm.core.errors import UserError
from teacherlm.core.flags import HIDDEN, LIST_MISSING, flag, parse, parse_shard, require_temperature
from teacherlm.core.results import GENERATED
from teacherlm.scoring.task_inputs import DATASETS

FAMILIES = ("hf", "hf-causal", "hf-causal-experimental", "bloom", "opt")
DTYPES = ("float32", "bfloat16", "float16")
WHAT, HOW, FAST = "what is scored", "how it is asked", "which part, where and how fast"
WRITTEN = "answers that the model writes (--answer generate or both)"
LETTER, GENERATE = "letter", "generate"
"""The measures: the log-likelihood of each choice's letter, and the answer that the model writes."""
STOP = ("\nQ:", " Q: ")
"""Texts that end a written answer by default: the beginning of another question."""


def read_model(text: str) -> tuple[str, str | None]:
    """The model and the dtype in `pretrained=MODEL[,dtype=DTYPE]`. MODEL may contain commas."""
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
    """The names in --tasks, which are separated by commas."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if wrong := next((name for name in names if name.endswith(GENERATED)), None):
        raise UserError(f"--tasks: {wrong}: the name of a task was expected; --answer {GENERATE} scores its texts")
    if not names:
        raise UserError("--tasks: at least one name was expected")
    return names


def read_batch_size(text: str) -> int | None:
    """The maximum number of inputs per batch; None (for "auto") means as many as the device can hold."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch_size: a positive number or auto was expected, found {text!r}")
    return int(text)


@dataclass(frozen=True)
class EvaluateFlags:
    """Which models are scored on which tasks, and how."""

    model: str = flag(
        "hf", choices=FAMILIES, help="accepted for the reference's commands; every value does the same", group=WHAT
    )
    model_args: tuple[str, str | None] = flag(
        parse=read_model,
        help="pretrained=MODEL[,dtype=DTYPE]; MODEL: a name in models/, a folder, or a hub id; DTYPE: as for --dtype",
        group=WHAT,
    )
    tasks: tuple[str, ...] = flag(
        parse=read_tasks,
        help="names, separated by commas: of task files, tasks in such files, benchmarks/, or tasks of lm-eval; "
        "a pattern such as 'mmlu_*' means all tasks that match",
        group=WHAT,
    )
    checkpoints: Path | None = flag(None, help="also score each checkpoint-N in this folder", group=WHAT)
    watch: bool = flag(False, help="wait for further --checkpoints until the finetuning has ended", group=WHAT)
    output_path: Path = flag(Path("results"), help="folder for the results (default: results)", group=WHAT)
    datasets: Path = flag(DATASETS, help="folder of the test sets (default: evaluate/lm_eval/datasets)", group=WHAT)
    include_path: Path | None = flag(None, help="a folder with more task files", group=WHAT)
    num_fewshot: int | None = flag(
        None,
        help="number of examples before each question (default: 0, or the default of a task of lm-eval)",
        least=0,
        group=HOW,
    )
    batch_size: int | None = flag(
        None,
        parse=read_batch_size,
        help="maximum number of inputs per batch (default: auto, chosen for the device)",
        group=FAST,
    )
    tokenization: str = flag(
        "auto",
        choices=("auto", "apart", "joint"),
        help="how context and choice are tokenized: apart, as in the reference; joint, as in lm-eval and in training; "
        "auto (default): apart if both ways give the same tokens, otherwise joint",
        group=HOW,
    )
    joint_tokenization: bool = flag(False, help="the same as --tokenization joint", group=HOW)
    chat: str = flag(
        "auto",
        choices=CHAT,
        help="true: questions are asked through the model's chat template; false: as plain texts; auto (default): as "
        "the model was trained, which a checkpoint of a chat student records",
        group=HOW,
    )
    fewshot_as_multiturn: bool = flag(
        False,
        help="a chat student gets each few-shot example as two turns, not as a text before the question",
        group=HOW,
    )
    permutations: str = flag(
        "none",
        choices=("none", "cyclic", "all"),
        help="ask each question with its choices in several orders, and average the probabilities (default: none)",
        group=HOW,
    )
    answer: str = flag(
        "auto",
        choices=("auto", LETTER, GENERATE, "both"),
        help="letter: the log-likelihood of each choice's letter, or what a task file asks for; generate: the answer "
        "that the model writes; both: one after the other; auto (default): letter, and generate for a benchmark "
        "without choices",
        group=HOW,
    )
    num_answers: int = flag(1, help="number of answers per question (default: 1)", least=1, group=WRITTEN)
    num_tokens: int = flag(512, help="maximum number of new tokens per answer (default: 512)", least=1, group=WRITTEN)
    temperature: float = flag(
        0.0, help="temperature of sampling; 0 takes the most likely token (default: 0)", least=0, group=WRITTEN
    )
    top_p: float = flag(
        1.0,
        help="sample only from the most likely tokens up to this total probability (default: 1)",
        above=0,
        most=1,
        group=WRITTEN,
    )
    stop: tuple[str, ...] | None = flag(
        None,
        help="a text that ends an answer; the flag may be given several times (default: the beginning of another "
        "question, Q:)",
        repeated=True,
        group=WRITTEN,
    )
    engine: str = flag(
        "transformers",
        choices=("auto", "transformers", "vllm"),
        help="what generates; auto: vllm where it is installed, there is a GPU, and it knows the model (default: "
        "transformers)",
        group=WRITTEN,
    )
    shard: tuple[int, int] = flag(
        (0, 1),
        parse=parse_shard,
        help="I/N: score shard I (counted from 0) of N; the process that ends last merges the shards",
        group=FAST,
    )
    device: str | None = flag(
        None, help="cpu, cuda, or the number of a GPU (default: a GPU if there is one)", group=FAST
    )
    dtype: str = flag("float32", choices=DTYPES, help="data type of the weights (default: float32)", group=FAST)
    limit: int | None = flag(
        None,
        help="maximum number of samples per task, for a trial, not for results (default: all)",
        least=1,
        group=WHAT,
    )
    seed: int = flag(
        0, help="seed for drawing the few-shot examples; 0 takes the first examples (default: 0)", least=0, group=HOW
    )
    list_missing: bool = flag(False, help=LIST_MISSING, group=FAST)
    no_cache: bool = flag(False, help=HIDDEN)  # a flag of the reference; there is no cache here

    @property
    def pretrained(self) -> str:
        """The model as the user named it."""
        return self.model_args[0]


def read_flags(description: str | None) -> EvaluateFlags:
    """Read the flags. Settings that can be given in two ways (dtype, tokenization) are merged into one field."""
    flags = parse(
        EvaluateFlags,
        description,
        example="teacherlm evaluate --model hf --model_args pretrained=smollm2-135m --tasks creak --limit 100",
    )
    _, dtype = flags.model_args
    if flags.fewshot_as_multiturn and (flags.chat == "false" or flags.num_fewshot == 0):
        raise UserError("--fewshot_as_multiturn needs --num_fewshot, and not --chat false; leave it out")
    tokenization = "joint" if flags.joint_tokenization else flags.tokenization
    if "" in (flags.stop or ()):
        raise UserError("--stop: a text that is not empty was expected")
    if flags.num_answers > 1 and flags.temperature == 0:
        raise UserError("--num_answers: with --temperature 0 all answers to a question would be the same")
    require_temperature(flags.temperature)
    return replace(flags, dtype=dtype or flags.dtype, tokenization=tokenization)


def require_effect(flags: EvaluateFlags, measures: Collection[str]) -> None:
    """Refuse flags that have no effect on the wanted measures.

    Raises:
        UserError: the message names the flag.
    """
    if GENERATE not in measures:
        of_texts = ("num_answers", "num_tokens", "temperature", "top_p", "stop", "engine")
        default = {one.name: one.default for one in fields(EvaluateFlags)}
        for name in of_texts:
            if getattr(flags, name) != default[name]:
                raise UserError(f"--{name} is for written answers; add --answer {GENERATE} or both, or leave it out")
    if GENERATE in measures and flags.permutations != "none":
        raise UserError(f"--permutations: only for --answer {LETTER}; a written answer is asked in one order")
    if LETTER not in measures and flags.tokenization != "auto":
        raise UserError("--tokenization is for the letters of choices; leave it out")
