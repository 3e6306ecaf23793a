"""Let a teacher write, for every record, why its answer is right: the chain of thought, the mistakes, the fundamentals.

Reads JSON lines whose prompt field (`cot_text`, `error_text` or `fundamental_text`) is completed; writes the same
records in the same order with `cot` (`error`, `fundamental`), the completion, and `all`, prompt and completion.
Interrupted, the same command goes on where it was; finished and unchanged, it does nothing.

Source: TeacherLM (He et al. 2023, arXiv 2310.19019), section 3.
"""

import argparse
from pathlib import Path

from teacherlm.catalog.models import Model, find_model
from teacherlm.catalog.prompts import KINDS
from teacherlm.catalog.servers import is_address
from teacherlm.core.errors import UserError
from teacherlm.core.flags import LIST_MISSING, Parser, require_number, share_of
from teacherlm.core.outputs import require_file_place, require_writable
from teacherlm.core.stage_run import locked
from teacherlm.enhance.job import Job, make_jobs
from teacherlm.enhance.work import do_work


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what")
    what.add_argument(
        "--name", required=True, help="the teacher: in models/, a folder, a hub id, http://host:port/model, field:FIELD"
    )
    what.add_argument("--input", required=True, type=Path, help="JSON lines, as data_prepare.py writes them")
    what.add_argument("--output", required=True, help="JSON lines with the texts; {kind} in it becomes cot, ...")
    what.add_argument("--task_type", required=True, help="the field that the teacher completes; several with commas")
    what.add_argument("--num_completions", type=int, default=1, help="texts per record; the first one is the field")
    what.add_argument("--shard", default="0/1", help="I/N: every Nth record from the Ith, 0 the first; see merge.py")
    what.add_argument("--restart", action="store_true", help="keep what other settings made beside, begin anew")
    what.add_argument("--max_failures", type=int, default=0, help="so many records may stay without a text (0)")
    what.add_argument("--list_missing", action="store_true", help=LIST_MISSING + " (of all N shards)")
    how = parser.add_argument_group("what the texts depend on")
    how.add_argument("--num_tokens", type=int, default=2048, help="at most so many new tokens (default: 2048)")
    how.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest token (default: 1, sampling)")
    how.add_argument("--top_p", type=float, default=1.0, help="sample from the likeliest tokens up to this probability")
    how.add_argument("--stop", action="append", default=[], help="a text that ends a completion; several times")
    how.add_argument("--seed", type=int, default=0, help="a record's draws depend on it and the prompt (default: 0)")
    dtypes = ["auto", "float32", "bfloat16", "float16", "int8"]
    how.add_argument("--dtype", default="auto", choices=dtypes, help="auto: bfloat16 where the device computes in it")
    fast = parser.add_argument_group("how fast")
    fast.add_argument(
        "--engine", choices=["transformers", "vllm", "openai"], help="default: transformers; openai for http://"
    )
    fast.add_argument("--batch_size", type=int, help="records at a time (default: the teacher's YAML, or what fits)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # torchrun of the reference passes it
    return check(parser.parse_args())


def check(args: argparse.Namespace) -> argparse.Namespace:
    """Check the flags together, and put what they stand for in their place.

    Raises:
        UserError: a value out of its range, or flags that contradict one another.
    """
    least = {"num_completions": 1, "max_failures": 0, "num_tokens": 1, "temperature": 0, "seed": 0, "batch_size": 1}
    for name, low in least.items():
        require_number(name, getattr(args, name), least=low)
    require_number("top_p", args.top_p, above=0, most=1)
    if args.num_completions > 1 and args.temperature == 0:
        raise UserError("--num_completions: with --temperature 0 all of them would be the same")
    args.task_type = list(dict.fromkeys(args.task_type.split(",")))  # one named twice is made once
    for field in args.task_type:
        if field not in KINDS:
            raise UserError(f"--task_type: one of {', '.join(KINDS)} was expected, found {field!r}")
    if len(args.task_type) > 1 and "{kind}" not in args.output:
        raise UserError("--output: with several task types it needs {kind}, for example CREAK_{kind}.jsonl")
    args.shard = share_of(args.shard)
    if args.name.startswith("field:"):
        if args.engine or args.num_completions > 1:
            raise UserError(f"--name {args.name}: it takes neither --engine nor --num_completions")
        args.engine = "field"
        return args
    remote = is_address(args.name)
    args.engine = args.engine or ("openai" if remote else "transformers")
    if remote != (args.engine == "openai"):
        raise UserError(
            f"--engine {args.engine} does not go with --name {args.name}: openai takes http://host:port/model"
        )
    return args


def main() -> int:
    args = parse_arguments()
    teacher = find_model(args.name)
    if args.list_missing:
        return list_missing(args, teacher)
    jobs: list[Job] = make_jobs(args, teacher)
    for job in jobs:
        require_writable(job.output.parent)
        require_file_place(job.output)
    with locked(*(job.run for job in jobs)):
        pending = [job for job in jobs if not job.is_done()]
        return do_work(args, teacher, pending) if pending else 0


def list_missing(args: argparse.Namespace, teacher: Model) -> int:
    _, count = args.shard
    for index in range(count):
        args.shard = (index, count)
        if any(job.is_missing() for job in make_jobs(args, teacher)):
            print(index)
    return 0
