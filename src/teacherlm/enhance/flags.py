"""The flags of enhance.py and their checks."""

from dataclasses import dataclass, replace
from pathlib import Path

from teacherlm.catalog.models import CHAT
from teacherlm.catalog.prompts import DEFAULT
from teacherlm.catalog.servers import is_address
from teacherlm.catalog.top_logprobs import MOST
from teacherlm.core.errors import UserError
from teacherlm.core.flags import HIDDEN, LIST_MISSING, flag, parse, parse_shard, require_temperature

WHAT = "what"
HOW = "what the texts depend on"
FAST = "how fast"
SERVED = "a teacher behind a server"
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
ENGINES = ("auto", "transformers", "vllm", "serve", "openai")

OF_SERVERS = (
    *("model", "key_variable", "requests_per_minute", "tokens_per_minute", "max_tokens_total", "max_cost"),
    *("price_in", "price_out"),
)
"""Flags that need a teacher behind a server."""


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
    chat: str | None = flag(
        None,
        help="true: the teacher gets its prompts as conversations; false: it completes them; auto: as conversations if "
        "its tokenizer has a chat template, and not for a server (default: from the teacher's YAML, otherwise auto)",
        group=HOW,
        choices=CHAT,
    )
    seed: int = flag(
        0,
        help="seed of the random numbers, which also depend on the record and its prompt (default: 0)",
        group=HOW,
        least=0,
    )
    top_logprobs: int = flag(
        0,
        help="keep the teacher's distribution at each token of its texts: the K most likely tokens and their "
        "probabilities, for finetune.py --kl_weight (default: 0, none)",
        group=HOW,
        metavar="K",
        least=0,
        most=MOST,
    )
    dtype: str = flag(
        "auto",
        help="data type of the weights; auto is bfloat16 if the device computes in it",
        group=HOW,
        choices=DTYPES,
    )
    engine: str | None = flag(
        None,
        help="default: openai for an http:// teacher, otherwise transformers; serve: a server that this command starts "
        "with the command `serve` of the teacher's YAML, and ends; auto: the engine that began the output, otherwise "
        "vllm where it is installed, there is a GPU, and it knows the teacher",
        group=FAST,
        choices=ENGINES,
    )
    batch_size: int | None = flag(
        None,
        help="maximum number of records at a time (default: from the teacher's YAML, or as many as fit)",
        group=FAST,
        least=1,
    )
    model: str | None = flag(
        None, help="the model's name, if the address has none: --name https://host/api/v1 --model NAME", group=SERVED
    )
    key_variable: str | None = flag(
        None, help="name of the environment variable with the key (default: OPENAI_API_KEY)", group=SERVED
    )
    requests_per_minute: float | None = flag(
        None, help="maximum number of requests in a minute (default: no limit)", group=SERVED, above=0
    )
    tokens_per_minute: float | None = flag(
        None,
        help="maximum number of tokens in a minute, of prompts and texts together (default: no limit)",
        group=SERVED,
        above=0,
    )
    max_tokens_total: int | None = flag(
        None,
        help="budget: no request begins that could exceed this number of tokens, of prompts and texts together",
        group=SERVED,
        least=1,
    )
    max_cost: float | None = flag(
        None, help="budget: no request begins that could exceed this cost, in the prices' unit", group=SERVED, above=0
    )
    price_in: float | None = flag(None, help="price of a million tokens of prompts", group=SERVED, least=0)
    price_out: float | None = flag(None, help="price of a million tokens of texts", group=SERVED, least=0)
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
    require_temperature(flags.temperature)
    if "" in flags.stop:
        raise UserError("--stop: a text that is not empty was expected")
    if flags.num_completions > 1 and flags.temperature == 0:
        raise UserError("--num_completions: with --temperature 0 all completions of a record would be the same")
    if len(flags.task_type) > 1 and "{kind}" not in flags.output:
        raise UserError("--output: with several task types the name needs {kind}, for example CREAK_{kind}.jsonl")
    if not is_address(flags.name):
        for name in OF_SERVERS:
            if getattr(flags, name) is not None:
                raise UserError(f"--{name}: only for a teacher behind a server, --name http://host:port/model")
    if flags.top_logprobs and (is_address(flags.name) or flags.name.startswith("field:") or flags.engine == "serve"):
        raise UserError("--top_logprobs needs the teacher's own tokens: a model with --engine transformers or vllm")
    if flags.max_cost is not None and not (flags.price_in or flags.price_out):
        raise UserError("--max_cost: without prices there is no cost; give --price_in and --price_out")
    if flags.name.startswith("field:"):
        if flags.engine not in (None, "auto") or flags.num_completions > 1 or flags.chat == "true":
            raise UserError(f"--name {flags.name}: a field takes no --engine, no --num_completions and no --chat true")
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
