"""The flags, as the reference names them."""

import argparse
from pathlib import Path

from atlas.compressed_search import KINDS
from atlas.losses import MODES
from atlas.schedules import SCHEDULERS, parse_schedule
from teacherlm.errors import Parser, UserError

DTYPES = ("fp32", "fp16", "bf16")
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
    model.add_argument("--generation_max_length", type=int, default=128, help="tokens that the reader writes, at most")
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

    index = parser.add_argument_group("index")
    index.add_argument("--load_index_path", type=Path, help="a saved index, in place of --passages")
    index.add_argument("--save_index_path", type=Path, help="where to save the index that is made of --passages")
    index.add_argument("--save_index_n_shards", type=int, default=128, help="files of its vectors (default: 128)")
    index.add_argument("--index_mode", choices=["flat", "faiss"], default="flat", help="exact (default) or compressed")
    index.add_argument("--faiss_index_type", choices=KINDS, default="flat")
    index.add_argument("--faiss_code_size", type=int, help="bytes of a vector's code (pq, ivfpq)")
    return parser


def add_training(parser: Parser) -> None:
    """The flags that train.py has beside the common ones."""
    train = parser.add_argument_group("training")
    train.add_argument("--train_data", nargs="+", type=Path, required=True, help="JSON lines of questions")
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
    positive = ("total_steps", "accumulation_steps", "eval_freq", "log_freq", "save_freq", "temperature_gold")
    for name in (*positive, "temperature_score", "retriever_n_context"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name}: a positive number was expected, found {getattr(options, name)}")
    parse_schedule(options.refresh_index)
    if options.retrieve_only:
        raise UserError("--retrieve_only is of evaluate.py: nothing would learn")
    if options.train_retriever and not options.retrieves:
        raise UserError("--train_retriever: with --closed_book or --use_file_passages there is no retriever")
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
    for name in ("per_gpu_batch_size", "text_maxlength", "n_context", "per_gpu_embedder_batch_size"):
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
    if options.passages and options.load_index_path:
        raise UserError("--passages and --load_index_path: one of them was expected")
    if options.save_index_path and options.load_index_path:
        raise UserError("--save_index_path saves what is made of --passages; it is loaded here, leave it out")
    if options.faiss_code_size and options.index_mode == "flat":
        raise UserError("--faiss_code_size is of --index_mode faiss")
    for name in ("encoder_format", "retriever_format"):
        check_format(
            name, getattr(options, name), ("query", "title", "text") if name == "encoder_format" else ("title", "text")
        )
    options.compressed = options.faiss_index_type if options.index_mode == "faiss" else None
    return options


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
