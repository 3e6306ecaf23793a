"""The flags of enhance.py and their checks."""

from dataclasses import dataclass, replace
from pathlib import Path

from teacherlm.catalog.prompt_sets import DEFAULT
from teacherlm.catalog.servers import is_address
from teacherlm.core.errors import UserError
from teacherlm.core.flags import HIDDEN, LIST_MISSING, flag, parse, parse_shard

WHAT = "what"
HOW = "what the texts depend on"
FAST = "how fast"
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
ENGINES = ("auto", "transformers", "vllm", "openai")


def task_types(text: str) -> tuple[str, ...]:
    """The prompt fields of --task_type, which are separated by commas. A repeated field counts once."""
    return tuple(dict.fromkeys(text.split(",")))


@dataclass(frozen=True)
class EnhanceFlags:
    """What the teacher writes, and how."""

    name: str = flag(
        help="the teacher: a name in models/, a folder, a hub id, http://host:port/model, or field:FIELD", group=WHAT
    )
    input: Path = flag(help="the records, JSON lines from data_prepare.py", group=WHAT)
    output: str = flag(
        help="the file for the enhanced records, JSON lines; {kind} in the name becomes the kind of explanation (cot)",
        group=WHAT,
    )
    task_type: tuple[str, ...] = flag(
        help="the prompt field that the teacher completes; separate several fields with commas",
        group=WHAT,
        parse=task_types,
    )
    prompts: str = flag(
        DEFAULT,
        help="name of the YAML in prompts/ that the records were prepared with, or its path (default: teacherlm)",
        group=WHAT,
    )
    num_completions: int = flag(
        1,
        help="number of completions per record; they are kept as a list, and the first one fills the field",
        group=WHAT,
        least=1,
    )
    shard: tuple[int, int] = flag(
        (0, 1),
        help="I/N: enhance every Nth record, beginning with record I (counted from 0); merge.py merges the shards",
        group=WHAT,
        parse=parse_shard,
    )
    restart: bool = flag(
        False,
        help="begin again when other settings made the output; the old file is kept under another name",
        group=WHAT,
    )
    max_failures: int = flag(0, help="maximum number of records without a text (default: 0)", group=WHAT, least=0)
    list_missing: bool = flag(False, help=LIST_MISSING + " (of all N shards)", group=WHAT)
    num_tokens: int = flag(2048, help="maximum number of new tokens per text (default: 2048)", group=HOW, least=1)
    temperature: float = flag(
        1.0, help="temperature of sampling; 0 takes the most likely token (default: 1)", group=HOW, least=0
    )
    top_p: float = flag(
        1.0,
        help="sample only from the most likely tokens up to this total probability (default: 1)",
        group=HOW,
        above=0,
        most=1,
    )
    stop: tuple[str, ...] = flag(
        (), help="a text that ends a completion; the flag may be given several times", group=HOW, repeated=True
    )
    seed: int = flag(
        0,
        help="seed of the random numbers, which also depend on the record and its prompt (default: 0)",
        group=HOW,
        least=0,
    )
    dtype: str = flag(
        "auto",
        help="data type of the weights; auto is bfloat16 if the device computes in it",
        group=HOW,
        choices=DTYPES,
    )
    engine: str | None = flag(
        None,
        help="default: openai for an http:// teacher, otherwise transformers; auto: the engine that began the output, "
        "otherwise vllm where it is installed, there is a GPU, and it knows the teacher",
        group=FAST,
        choices=ENGINES,
    )
    batch_size: int | None = flag(
        None,
        help="maximum number of records at a time (default: from the teacher's YAML, or as many as fit)",
        group=FAST,
        least=1,
    )
    local_rank: int | None = flag(None, help=HIDDEN)  # torchrun passes it in the reference's commands


def read_flags(description: str | None) -> EnhanceFlags:
    """Read the flags, and choose the engine if none is given. Of a local teacher, `auto` is decided for each output.

    Raises:
        UserError: a value is out of range, or flags contradict one another.
    """
    flags = parse(
        EnhanceFlags,
        description,
        example="teacherlm enhance --name smollm2-135m --input A.jsonl --output A_cot.jsonl --task_type cot_text",
    )
    if flags.num_completions > 1 and flags.temperature == 0:
        raise UserError("--num_completions: with --temperature 0 all completions of a record would be the same")
    if len(flags.task_type) > 1 and "{kind}" not in flags.output:
        raise UserError("--output: with several task types the name needs {kind}, for example CREAK_{kind}.jsonl")
    if flags.name.startswith("field:"):
        if flags.engine not in (None, "auto") or flags.num_completions > 1:
            raise UserError(f"--name {flags.name}: a field takes neither --engine nor --num_completions")
        return replace(flags, engine="field")
    remote = is_address(flags.name)
    engine = flags.engine or ("openai" if remote else "transformers")
    engine = "openai" if remote and engine == "auto" else engine
    if remote != (engine == "openai"):
        raise UserError(
            f"--engine {engine} does not fit --name {flags.name}: openai, and no other engine, takes a teacher "
            "http://host:port/model"
        )
    return replace(flags, engine=engine)
