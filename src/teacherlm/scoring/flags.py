"""The flags of an evaluation, checked as they are read."""

import argparse
import re
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.flags import LIST_MISSING, Parser, require_number, share_of

FAMILIES = ("hf", "hf-causal", "hf-causal-experimental", "bloom", "opt")
DTYPES = ("float32", "bfloat16", "float16")


def parse_arguments(description: str) -> argparse.Namespace:
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=FAMILIES, default="hf", help="the family; all load alike")
    parser.add_argument(
        "--model_args",
        required=True,
        help="pretrained=MODEL: a name in models/, a folder, or a hub id; dtype=... as --dtype",
    )
    parser.add_argument(
        "--tasks",
        required=True,
        help="names with commas: of task files, tasks in them, benchmarks/, lm-eval's own; 'mmlu_*' for all that match",
    )
    parser.add_argument("--checkpoints", type=Path, help="score each checkpoint-N of this folder too")
    parser.add_argument(
        "--watch", action="store_true", help="wait for more of the --checkpoints until their finetuning has ended"
    )
    parser.add_argument(
        "--output_path", type=Path, default=Path("results"), help="folder of the results (default: results)"
    )
    parser.add_argument(
        "--datasets", type=Path, help="folder of the test sets (default: lm_eval/datasets beside this file)"
    )
    parser.add_argument("--include_path", type=Path, help="a folder with more task files")
    parser.add_argument(
        "--num_fewshot", type=int, help="examples before each question (default: 0, or what lm-eval's own task has)"
    )
    parser.add_argument("--batch_size", default="auto", help="inputs at once, at most (default: auto: by the device)")
    parser.add_argument(
        "--tokenization",
        default="auto",
        choices=["auto", "apart", "joint"],
        help="of context and choice: apart, as the reference; joint, as lm-eval and as students are trained; auto "
        "(default): apart where both give the same tokens, else joint",
    )
    parser.add_argument("--joint_tokenization", action="store_true", help="the same as --tokenization joint")
    parser.add_argument(
        "--permutations",
        default="none",
        choices=["none", "cyclic", "all"],
        help="ask each question with its choices in several orders, and average (default: none)",
    )
    parser.add_argument("--shard", default="0/1", help="I/N: the Ith of N shares, 0 the first; the last to end merges")
    parser.add_argument("--device", help="cpu, cuda, or the number of a GPU (default: a GPU when there is one)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--limit", type=int, help="the first so many samples only: for trying out, not for results")
    parser.add_argument("--seed", type=int, default=0, help="draws the few-shot examples")
    parser.add_argument("--list_missing", action="store_true", help=LIST_MISSING)
    parser.add_argument("--no_cache", action="store_true", help=argparse.SUPPRESS)  # the reference's; there is no cache
    args = parser.parse_args()
    args.pretrained, dtype = model_args(args.model_args)
    args.dtype = dtype or args.dtype
    args.tasks = [name.strip() for name in args.tasks.split(",") if name.strip()]
    if not args.tasks:
        raise UserError("--tasks: at least one name was expected")
    if args.batch_size == "auto":
        args.batch_size = None
    elif not args.batch_size.isdecimal() or int(args.batch_size) < 1:
        raise UserError(f"--batch_size: a positive number or auto was expected, found {args.batch_size!r}")
    else:
        args.batch_size = int(args.batch_size)
    args.shard = share_of(args.shard)
    if args.joint_tokenization:
        args.tokenization = "joint"
    for name, low in {"limit": 1, "num_fewshot": 0, "seed": 0}.items():
        require_number(name, getattr(args, name), least=low)
    return args


def model_args(text: str) -> tuple[str, str | None]:
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
