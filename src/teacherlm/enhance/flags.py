"""The flags of enhance.py, checked as they are read."""

from dataclasses import dataclass, replace
from pathlib import Path

from teacherlm.catalog.prompts import KINDS
from teacherlm.catalog.servers import is_address
from teacherlm.core.errors import UserError
from teacherlm.core.flags import HIDDEN, LIST_MISSING, flag, parse, share_of

WHAT = "what"
HOW = "what the texts depend on"
FAST = "how fast"
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
ENGINES = ("transformers", "vllm", "openai")


def task_types(text: str) -> tuple[str, ...]:
    """The prompt fields of --task_type, with commas; one that is named twice is made once."""
    fields = tuple(dict.fromkeys(text.split(",")))
    for field in fields:
        if field not in KINDS:
            raise UserError(f"--task_type: one of {', '.join(KINDS)} was expected, found {field!r}")
    return fields


@dataclass(frozen=True)
class EnhanceFlags:
    """What a teacher is to write, and how."""

    name: str = flag(
        help="the teacher: in models/, a folder, a hub id, http://host:port/model, field:FIELD", group=WHAT
    )
    input: Path = flag(help="JSON lines, as data_prepare.py writes them", group=WHAT)
    output: str = flag(help="JSON lines with the texts; {kind} in it becomes cot, ...", group=WHAT)
    task_type: tuple[str, ...] = flag(
        help="the field that the teacher completes; several with commas", group=WHAT, parse=task_types
    )
    num_completions: int = flag(1, help="texts per record; the first one is the field", group=WHAT, least=1)
    shard: tuple[int, int] = flag(
        (0, 1), help="I/N: every Nth record from the Ith, 0 the first; see merge.py", group=WHAT, parse=share_of
    )
    restart: bool = flag(False, help="keep what other settings made beside, begin anew", group=WHAT)
    max_failures: int = flag(0, help="so many records may stay without a text (0)", group=WHAT, least=0)
    list_missing: bool = flag(False, help=LIST_MISSING + " (of all N shards)", group=WHAT)
    num_tokens: int = flag(2048, help="at most so many new tokens (default: 2048)", group=HOW, least=1)
    temperature: float = flag(1.0, help="0: the likeliest token (default: 1, sampling)", group=HOW, least=0)
    top_p: float = flag(1.0, help="sample from the likeliest tokens up to this probability", group=HOW, above=0, most=1)
    stop: tuple[str, ...] = flag((), help="a text that ends a completion; several times", group=HOW, repeated=True)
    seed: int = flag(0, help="a record's draws depend on it and the prompt (default: 0)", group=HOW, least=0)
    dtype: str = flag("auto", help="auto: bfloat16 where the device computes in it", group=HOW, choices=DTYPES)
    engine: str | None = flag(None, help="default: transformers; openai for http://", group=FAST, choices=ENGINES)
    batch_size: int | None = flag(
        None, help="records at a time (default: the teacher's YAML, or what fits)", group=FAST, least=1
    )
    local_rank: int | None = flag(None, help=HIDDEN)  # torchrun of the reference passes it


def read_flags(description: str | None) -> EnhanceFlags:
    """Read the flags, and choose the engine where none is named.

    Raises:
        UserError: a value out of its range, or flags that contradict one another.
    """
    flags = parse(
        EnhanceFlags,
        description,
        example="teacherlm enhance --name smollm2-135m --input A.jsonl --output A_cot.jsonl --task_type cot_text",
    )
    if flags.num_completions > 1 and flags.temperature == 0:
        raise UserError("--num_completions: with --temperature 0 all of them would be the same")
    if len(flags.task_type) > 1 and "{kind}" not in flags.output:
        raise UserError("--output: with several task types it needs {kind}, for example CREAK_{kind}.jsonl")
    if flags.name.startswith("field:"):
        if flags.engine or flags.num_completions > 1:
            raise UserError(f"--name {flags.name}: it takes neither --engine nor --num_completions")
        return replace(flags, engine="field")
    remote = is_address(flags.name)
    engine = flags.engine or ("openai" if remote else "transformers")
    if remote != (engine == "openai"):
        raise UserError(f"--engine {engine} does not go with --name {flags.name}: openai takes http://host:port/model")
    return replace(flags, engine=engine)
