"""The flags, as the reference names them."""

import argparse
from pathlib import Path
from typing import Any

from teacherlm.atlas import workers
from teacherlm.atlas.compressed_search import KINDS
from teacherlm.atlas.losses import MODES
from teacherlm.atlas.schedules import SCHEDULERS, parse_schedule
from teacherlm.core.errors import UserError
from teacherlm.core.flags import Parser
from teacherlm.core.outputs import require_writable

OTHER_TASK = "of another task than multiple choice"
UNUSED: dict[str, tuple[Any, str]] = {
    "local_rank": (int, "torchrun says it in LOCAL_RANK, srun in SLURM_LOCALID"),
    "alpha": (float, "AdamW has no alpha; the reference does not use it either"),
    "filtering_overretrieve_ratio": (int, "of multiple choice nothing that was retrieved is filtered out"),
    "compute_crossattention_stats": (
        None,
        "log.jsonl has no correlations; evalnormsum learns from these scores",
    ),
    "qa_prompt_format": (str, OTHER_TASK),
    "mlm_noise_density": (float, OTHER_TASK),
    "mlm_mean_noise_span_length": (float, OTHER_TASK),
    "min_words_per_lm_instance": (int, OTHER_TASK),
    "min_lm_context_ratio": (float, OTHER_TASK),
    "max_lm_context_ratio": (float, OTHER_TASK),
}
"""Flags of the reference that are accepted and change nothing: their type (None: a switch), and why."""
DTYPES = ("fp32", "fp16", "bf16")
FORMATS = {
    "encoder_format": ("query", "title", "text"),
    "retriever_format": ("title", "text"),
    "decoder_format": ("target",),
    "decoder_prompt_format": ("query",),
}
"""Flags that are filled with texts, and the names of these."""
PERMUTATIONS = ("single", "cyclic", "all")


def parser(description: str) -> Parser:
    """The flags that evaluate.py and train.py share."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = parser.add_argument_group("run")
    run.add_argument("--name", default="experiment_name", help="of the run, and of its folder")
    run.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoint"), help="where the run's folder is")
    run.add_argument("--model_path", default="none", help="a checkpoint's folder; none: T5 and encoder as they are")
    run.add_argument("--eval_data", nargs="+", type=Path, default=[], help="JSON lines of questions")
    run.add_argument("--task", choices=["multiple_choice"], default="multiple_choice")
    run.add_argument("--per_gpu_batch_size", type=int, default=1, help="prompts that a worker reads at a time")
    run.add_argument("--precision", choices=DTYPES, default="fp32")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--main_port", type=int, default=-1, help="of the first worker, under srun (default: by the job)")
    run.add_argument("--write_results", action="store_true", help="write the predictions")
    run.add_argument("--dont_write_passages", action="store_true", help="leave the passages out of them")

    model = parser.add_argument_group("reader and retriever")
    model.add_argument("--reader_model_type", required=True, help="a T5: a hub id, a folder, or a name in models/")
    model.add_argument("--retriever_model_path", default="facebook/contriever", help="an encoder, named alike")
    model.add_argument(
        "--text_maxlength", type=int, default=200, help="tokens of a query with a passage (default: 200)"
    )
    model.add_argument("--target_maxlength", type=int, help="tokens of a target, at most")
    model.add_argument("--n_context", type=int, default=1, help="passages that the reader gets (default: 1)")
    model.add_argument("--retriever_n_context", type=int, default=5, help="passages that train the retriever")
    model.add_argument("--encoder_format", default="{query} title: {title} context: {text}", help="the reader's text")
    model.add_argument("--retriever_format", default="{title} {text}", help="the encoder's text of a passage")
    model.add_argument("--decoder_format", help="of the reader's target, with {target} (default: the target alone)")
    model.add_argument("--decoder_prompt_format", help="what the decoder begins with, with {query} (default: nothing)")
    model.add_argument("--generation_max_length", type=int, default=128, help="tokens that the reader writes, at most")
    model.add_argument("--generation_min_length", type=int, help="at least")
    model.add_argument("--generation_num_beams", type=int, default=1, help="of beam search (default: 1, greedy)")
    model.add_argument(
        "--generation_length_penalty", type=float, default=1.0, help="of beam search: above 0 it favours long texts"
    )
    model.add_argument(
        "--query_side_retriever_training", action="store_true", help="the passage encoder has weights of its own"
    )

    task = parser.add_argument_group("multiple choice")
    task.add_argument("--multiple_choice_num_options", type=int, default=4)
    task.add_argument("--multiple_choice_train_permutations", choices=PERMUTATIONS, default="single")
    task.add_argument(
        "--multiple_choice_eval_permutations",
        choices=PERMUTATIONS,
        default="single",
        help="orders of the options that a question is asked in; probabilities are averaged (default: single)",
    )

    passages = parser.add_argument_group("passages")
    passages.add_argument("--closed_book", action="store_true", help="without passages: a T5")
    passages.add_argument("--use_file_passages", action="store_true", help="those in the questions' field `passages`")
    passages.add_argument("--retrieve_only", action="store_true", help="write what is retrieved, and read nothing")
    passages.add_argument("--passages", nargs="+", type=Path, help="JSON lines {id, title, section, text} to index")
    passages.add_argument("--max_passages", type=int, default=-1, help="the first so many of them (default: all)")
    passages.add_argument("--per_gpu_embedder_batch_size", type=int, default=512, help="passages embedded at a time")
    passages.add_argument(
        "--retrieve_with_rerank",
        action="store_true",
        help="embed the best passages of the index anew, with the passage encoder as it is now, and rank them by that",
    )
    passages.add_argument(
        "--n_to_rerank_with_retrieve_with_rerank", type=int, default=128, help="so many of them (default: 128)"
    )

    index = parser.add_argument_group("index")
    index.add_argument("--load_index_path", type=Path, help="a saved index, in place of --passages")
    index.add_argument("--save_index_path", type=Path, help="where to save the index that is made of --passages")
    index.add_argument(
        "--save_index_n_shards",
        type=int,
        default=128,
        help="files of its vectors; also of an index in the reference's format that is loaded (default: 128)",
    )
    index.add_argument("--index_mode", choices=["flat", "faiss"], default="flat", help="exact (default) or compressed")
    index.add_argument("--faiss_index_type", choices=KINDS, default="flat")
    index.add_argument("--faiss_code_size", type=int, help="bytes of a vector's code (pq, ivfpq)")

    unused = parser.add_argument_group("of the reference, accepted and not used")
    for name, (kind, why) in UNUSED.items():
        form: dict[str, Any] = {"action": "store_true"} if kind is None else {"type": kind}
        unused.add_argument(f"--{name}", default=argparse.SUPPRESS, help=why, **form)
    return parser


def parse_evaluation(parser: Parser) -> argparse.Namespace:
    """Parse the flags of evaluate.py; those of train.py are accepted and left out, as one list may serve both."""
    training = Parser(add_help=False, allow_abbrev=False)
    add_training(training)
    training.set_defaults(**dict.fromkeys(vars(training.parse_args([]))))  # None: not given
    ignored, rest = training.parse_known_args()
    options = parser.parse_args(rest)
    flags = ", ".join(f"--{name}" for name, value in vars(ignored).items() if value is not None)
    options.notes = [f"ignored, of train.py: {flags}"] if flags else []
    return options


def say_notes(options: argparse.Namespace, stage: str) -> None:
    """Print, in the first worker, which flags change nothing here."""
    for note in options.notes:
        workers.say(f"{stage}: {note}")


def add_training(parser: Parser) -> None:
    """The flags that train.py has beside the common ones."""
    train = parser.add_argument_group("training")
    train.add_argument("--train_data", nargs="+", type=Path, default=[], help="JSON lines of questions")
    train.add_argument("--total_steps", type=int, default=1000)
    train.add_argument("--accumulation_steps", type=int, default=1, help="batches of a step (default: 1)")
    train.add_argument("--shuffle", action="store_true", help="an order of its own for each epoch")
    train.add_argument("--dropout", type=float, default=0.1)
    train.add_argument("--eval_freq", type=int, default=500, help="steps between evaluations of --eval_data")
    train.add_argument("--log_freq", type=int, default=100, help="steps between lines of log.jsonl")
    train.add_argument("--save_freq", type=int, default=5000, help="steps between checkpoints")
    train.add_argument("--save_optimizer", action="store_true", help="with what another run needs to go on from them")

    rate = parser.add_argument_group("optimizer")
    rate.add_argument("--lr", type=float, default=1e-4, help="of the reader (default: 1e-4)")
    rate.add_argument("--lr_retriever", type=float, default=1e-5)
    rate.add_argument("--scheduler", choices=SCHEDULERS, default="cosine")
    rate.add_argument("--warmup_steps", type=int, default=1000)
    rate.add_argument("--scheduler_steps", type=int, help="where the schedule ends (default: --total_steps)")
    rate.add_argument("--weight_decay", type=float, default=0.1)
    rate.add_argument("--clip", type=float, default=1.0, help="the gradient's norm, at most")
    rate.add_argument("--beta2", type=float, default=0.999)
    rate.add_argument("--epsilon", type=float, default=1e-6)
    rate.add_argument("--shard_optim", action="store_true", help="each worker keeps a share of the optimizer's states")
    rate.add_argument("--shard_grads", action="store_true", help="and of the gradients")
    rate.add_argument("--use_gradient_checkpoint_reader", action="store_true", help="less memory, more time")
    rate.add_argument("--use_gradient_checkpoint_retriever", action="store_true")

    retriever = parser.add_argument_group("training of the retriever")
    retriever.add_argument("--train_retriever", action="store_true")
    retriever.add_argument("--gold_score_mode", choices=MODES, default="ppmean", help="what it learns from")
    retriever.add_argument("--temperature_gold", type=float, default=0.01)
    retriever.add_argument("--temperature_score", type=float, default=0.01)
    retriever.add_argument("--freeze_retriever_steps", type=int, default=-1, help="until then it does not learn")
    retriever.add_argument(
        "--refresh_index", default="-1", help="-1 (never), every so many steps, or 0-100:10,100-1000000:500"
    )


def check_training(options: argparse.Namespace) -> argparse.Namespace:
    """Flags of training that contradict one another, or are out of range, are refused."""
    if not options.train_data:
        raise UserError("--train_data: at least one file of questions was expected")
    positive = ("total_steps", "accumulation_steps", "eval_freq", "log_freq", "save_freq", "temperature_gold")
    for name in (*positive, "temperature_score", "retriever_n_context"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name}: a positive number was expected, found {getattr(options, name)}")
    parse_schedule(options.refresh_index)
    if options.retrieve_only:
        raise UserError("--retrieve_only is of evaluate.py: nothing would learn")
    of_retriever = ("train_retriever", "query_side_retriever_training", "use_gradient_checkpoint_retriever")
    off = [name for name in of_retriever if getattr(options, name) and not options.retrieves]
    if off:
        why = "--closed_book" if options.closed_book else "--use_file_passages"
        options.notes.append(f"off, as {why} has no retriever: {', '.join(f'--{name}' for name in off)}")
    for name in off:
        setattr(options, name, False)
    if options.shard_grads and not options.shard_optim:
        raise UserError("--shard_grads shards the optimizer's states too: --shard_optim was expected with it")
    if options.retrieves and options.retriever_n_context < options.n_context:
        raise UserError(
            f"--retriever_n_context {options.retriever_n_context}: the reader learns from the first --n_context "
            f"{options.n_context} of them; at least as many were expected"
        )
    return options


def check(options: argparse.Namespace) -> argparse.Namespace:
    """Complete the flags; closed book means one empty passage, as in the reference.

    Raises:
        UserError: flags contradict one another, or a number is out of range.
    """
    options.notes = getattr(options, "notes", [])
    for name in [name for name in UNUSED if hasattr(options, name)]:
        delattr(options, name)
        options.notes.append(f"--{name} is not used: {UNUSED[name][1]}")
    positive = ("per_gpu_batch_size", "text_maxlength", "n_context", "per_gpu_embedder_batch_size")
    for name in (*positive, "generation_num_beams", "save_index_n_shards"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}: a positive number was expected, found {getattr(options, name)}")
    if options.closed_book and options.retrieve_only:
        raise UserError("--closed_book retrieves nothing; leave out --retrieve_only")
    if options.use_file_passages and options.retrieve_only:
        raise UserError("--use_file_passages retrieves nothing; leave out --retrieve_only")
    if options.closed_book:
        options.n_context = options.retriever_n_context = 1
        options.encoder_format = "{query}"
    options.retrieves = not (options.closed_book or options.use_file_passages)
    if options.retrieves and not (options.passages or options.load_index_path):
        raise UserError(
            "what to retrieve from is missing: --passages FILE ... or --load_index_path FOLDER (or --closed_book)"
        )
    for file in options.passages or ():
        if not file.is_file():
            raise UserError(f"{file}: no such file; JSON lines of passages were expected (--passages)")
    for flag in ("eval_data", "train_data"):
        for file in getattr(options, flag, []):
            if not getattr(options, "list_missing", False):  # asked before an earlier stage has made them
                require_questions(file, f"--{flag}")
    if options.retrieve_with_rerank and options.n_to_rerank_with_retrieve_with_rerank < options.n_context:
        raise UserError(
            f"--n_to_rerank_with_retrieve_with_rerank {options.n_to_rerank_with_retrieve_with_rerank}: at least "
            f"--n_context {options.n_context} was expected"
        )
    if options.passages and options.load_index_path:
        raise UserError("--passages and --load_index_path: one of them was expected")
    if options.save_index_path and options.load_index_path:
        raise UserError("--save_index_path saves what is made of --passages; it is loaded here, leave it out")
    if options.faiss_code_size and options.index_mode == "flat":
        raise UserError("--faiss_code_size is of --index_mode faiss")
    for name, fields in FORMATS.items():
        if getattr(options, name) is not None:
            check_format(name, getattr(options, name), fields)
    if options.decoder_format is not None and "{target}" not in options.decoder_format:
        raise UserError(f"--decoder_format: {options.decoder_format!r}: {{target}} was expected in it")
    if options.save_index_path and not getattr(options, "list_missing", False):
        require_writable(options.save_index_path)  # now, not after the passages are embedded
    options.compressed = options.faiss_index_type if options.index_mode == "faiss" else None
    return options


def require_questions(file: Path, flag: str) -> None:
    """Refuse a file that is not there; where one of its name is in a folder beside, the message names it.

    The documentation of the 5-shot experiment gives individual_valid/DOMAIN.test.jsonl, which is in individual_test.
    """
    if file.is_file():
        return
    near = sorted(found for found in file.parent.parent.glob(f"*/{file.name}") if found.is_file())
    hint = f"; {near[0]} is there" if near else "; JSON lines of questions were expected"
    raise UserError(f"{file}: no such file ({flag}){hint}")


def check_format(flag: str, text: str, fields: tuple[str, ...]) -> None:
    """Formats are only filled with texts: `{text.__class__}` or `{text!r}` is none."""
    import string

    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"--{flag}: {text!r}: {error}") from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in fields or form or conversion):
            raise UserError(f"--{flag}: {{{name}}} is not known; there are: {', '.join(f'{{{f}}}' for f in fields)}")
