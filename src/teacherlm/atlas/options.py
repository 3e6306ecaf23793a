"""The flags, as the reference names them."""

import string
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from teacherlm.atlas import workers
from teacherlm.atlas.compressed_search import KINDS
from teacherlm.atlas.losses import MODES
from teacherlm.atlas.schedules import SCHEDULERS, parse_schedule
from teacherlm.core.errors import UserError
from teacherlm.core.flags import LIST_MISSING, flag, parse, parser_of
from teacherlm.core.outputs import require_writable

DTYPES = ("fp32", "fp16", "bf16")
FORMATS = {
    "encoder_format": ("query", "title", "text"),
    "retriever_format": ("title", "text"),
    "decoder_format": ("target",),
    "decoder_prompt_format": ("query",),
}
"""Flags that are filled with texts, and the names of these."""
PERMUTATIONS = ("single", "cyclic", "all")
OTHER_TASK = "of another task than multiple choice"

RUN, MODEL, CHOICE, PASSAGES, INDEX = "run", "reader and retriever", "multiple choice", "passages", "index"
TRAINING, OPTIMIZER, RETRIEVER = "training", "optimizer", "training of the retriever"
UNUSED = "of the reference, accepted and not used"
"""Group of flags that change nothing; their help says why."""


@dataclass(frozen=True)
class AtlasFlags:
    """The flags that evaluate.py and train.py share."""

    notes: tuple[str, ...] = ()
    """Which flags change nothing here."""

    name: str = flag("experiment_name", help="of the run, and of its folder", group=RUN)
    checkpoint_dir: Path = flag(Path("checkpoint"), help="where the run's folder is", group=RUN)
    model_path: str = flag("none", help="a checkpoint's folder; none: T5 and encoder as they are", group=RUN)
    eval_data: tuple[Path, ...] = flag((), help="JSON lines of questions", group=RUN)
    task: str = flag("multiple_choice", choices=["multiple_choice"], help="the only task that there is", group=RUN)
    per_gpu_batch_size: int = flag(1, help="prompts that a worker reads at a time", group=RUN)
    precision: str = flag("fp32", choices=DTYPES, help="data type of the computation (default: fp32)", group=RUN)
    seed: int = flag(0, help="of all random numbers (default: 0)", group=RUN)
    main_port: int = flag(-1, help="of the first worker, under srun (default: by the job)", group=RUN)
    write_results: bool = flag(False, help="write the predictions", group=RUN)
    dont_write_passages: bool = flag(False, help="leave the passages out of them", group=RUN)
    reader_model_type: str = flag(help="a T5: a hub id, a folder, or a name in models/", group=MODEL)
    retriever_model_path: str = flag("facebook/contriever", help="an encoder, named alike", group=MODEL)
    text_maxlength: int = flag(200, help="tokens of a query with a passage (default: 200)", group=MODEL)
    target_maxlength: int | None = flag(None, help="tokens of a target, at most", group=MODEL)
    n_context: int = flag(1, help="passages that the reader gets (default: 1)", group=MODEL)
    retriever_n_context: int = flag(5, help="passages that train the retriever", group=MODEL)
    encoder_format: str = flag("{query} title: {title} context: {text}", help="the reader's text", group=MODEL)
    retriever_format: str = flag("{title} {text}", help="the encoder's text of a passage", group=MODEL)
    decoder_format: str | None = flag(
        None, help="of the reader's target, with {target} (default: the target alone)", group=MODEL
    )
    decoder_prompt_format: str | None = flag(
        None, help="what the decoder begins with, with {query} (default: nothing)", group=MODEL
    )
    generation_max_length: int = flag(128, help="tokens that the reader writes, at most", group=MODEL)
    generation_min_length: int | None = flag(None, help="at least", group=MODEL)
    generation_num_beams: int = flag(1, help="of beam search (default: 1, greedy)", group=MODEL)
    generation_length_penalty: float = flag(1.0, help="of beam search: above 0 it favours long texts", group=MODEL)
    query_side_retriever_training: bool = flag(False, help="the passage encoder has weights of its own", group=MODEL)
    multiple_choice_num_options: int = flag(4, help="options of a question (default: 4)", group=CHOICE)
    multiple_choice_train_permutations: str = flag(
        "single", choices=PERMUTATIONS, help="orders of the options in training (default: single)", group=CHOICE
    )
    multiple_choice_eval_permutations: str = flag(
        "single",
        choices=PERMUTATIONS,
        help="orders of the options that a question is asked in; probabilities are averaged (default: single)",
        group=CHOICE,
    )
    closed_book: bool = flag(False, help="without passages: a T5", group=PASSAGES)
    use_file_passages: bool = flag(False, help="those in the questions' field `passages`", group=PASSAGES)
    retrieve_only: bool = flag(False, help="write what is retrieved, and read nothing", group=PASSAGES)
    passages: tuple[Path, ...] = flag((), help="JSON lines {id, title, section, text} to index", group=PASSAGES)
    max_passages: int = flag(-1, help="the first so many of them (default: all)", group=PASSAGES)
    per_gpu_embedder_batch_size: int = flag(512, help="passages embedded at a time", group=PASSAGES)
    retrieve_with_rerank: bool = flag(
        False,
        help="embed the best passages of the index anew, with the passage encoder as it is now, and rank them by that",
        group=PASSAGES,
    )
    n_to_rerank_with_retrieve_with_rerank: int = flag(128, help="so many of them (default: 128)", group=PASSAGES)
    load_index_path: Path | None = flag(None, help="a saved index, in place of --passages", group=INDEX)
    save_index_path: Path | None = flag(None, help="where to save the index that is made of --passages", group=INDEX)
    save_index_n_shards: int = flag(
        128,
        help="files of its vectors; also of an index in the reference's format that is loaded (default: 128)",
        group=INDEX,
    )
    index_mode: str = flag("flat", choices=["flat", "faiss"], help="exact (default) or compressed", group=INDEX)
    faiss_index_type: str = flag(
        "flat", choices=KINDS, help="how vectors are compressed (default: flat, not at all)", group=INDEX
    )
    faiss_code_size: int | None = flag(None, help="bytes of a vector's code (pq, ivfpq)", group=INDEX)
    local_rank: int | None = flag(None, help="torchrun says it in LOCAL_RANK, srun in SLURM_LOCALID", group=UNUSED)
    alpha: float | None = flag(None, help="AdamW has no alpha; the reference does not use it either", group=UNUSED)
    filtering_overretrieve_ratio: int | None = flag(
        None, help="of multiple choice nothing that was retrieved is filtered out", group=UNUSED
    )
    compute_crossattention_stats: bool = flag(
        False, help="log.jsonl has no correlations; evalnormsum learns from these scores", group=UNUSED
    )
    qa_prompt_format: str | None = flag(None, help=OTHER_TASK, group=UNUSED)
    mlm_noise_density: float | None = flag(None, help=OTHER_TASK, group=UNUSED)
    mlm_mean_noise_span_length: float | None = flag(None, help=OTHER_TASK, group=UNUSED)
    min_words_per_lm_instance: int | None = flag(None, help=OTHER_TASK, group=UNUSED)
    min_lm_context_ratio: float | None = flag(None, help=OTHER_TASK, group=UNUSED)
    max_lm_context_ratio: float | None = flag(None, help=OTHER_TASK, group=UNUSED)

    @property
    def retrieves(self) -> bool:
        """Whether the run has a retriever."""
        return not (self.closed_book or self.use_file_passages)

    @property
    def compressed(self) -> str | None:
        """How the vectors of the index are compressed, where they are."""
        return self.faiss_index_type if self.index_mode == "faiss" else None


@dataclass(frozen=True)
class TrainingFlags:
    """The flags that train.py has beside the common ones."""

    train_data: tuple[Path, ...] = flag((), help="JSON lines of questions", group=TRAINING)
    total_steps: int = flag(1000, help="steps of training (default: 1000)", group=TRAINING)
    accumulation_steps: int = flag(1, help="batches of a step (default: 1)", group=TRAINING)
    shuffle: bool = flag(False, help="an order of its own for each epoch", group=TRAINING)
    dropout: float = flag(0.1, help="of the reader (default: 0.1)", group=TRAINING)
    eval_freq: int = flag(500, help="steps between evaluations of --eval_data", group=TRAINING)
    log_freq: int = flag(100, help="steps between lines of log.jsonl", group=TRAINING)
    save_freq: int = flag(5000, help="steps between checkpoints", group=TRAINING)
    save_optimizer: bool = flag(False, help="with what another run needs to go on from them", group=TRAINING)
    lr: float = flag(1e-4, help="of the reader (default: 1e-4)", group=OPTIMIZER)
    lr_retriever: float = flag(1e-5, help="of the retriever (default: 1e-5)", group=OPTIMIZER)
    scheduler: str = flag(
        "cosine", choices=SCHEDULERS, help="of both learning rates (default: cosine)", group=OPTIMIZER
    )
    warmup_steps: int = flag(1000, help="steps in which the learning rates rise (default: 1000)", group=OPTIMIZER)
    scheduler_steps: int | None = flag(None, help="where the schedule ends (default: --total_steps)", group=OPTIMIZER)
    weight_decay: float = flag(0.1, help="of AdamW (default: 0.1)", group=OPTIMIZER)
    clip: float = flag(1.0, help="the gradient's norm, at most", group=OPTIMIZER)
    beta2: float = flag(0.999, help="of AdamW (default: 0.999)", group=OPTIMIZER)
    epsilon: float = flag(1e-6, help="of AdamW (default: 1e-6)", group=OPTIMIZER)
    shard_optim: bool = flag(False, help="each worker keeps a share of the optimizer's states", group=OPTIMIZER)
    shard_grads: bool = flag(False, help="and of the gradients", group=OPTIMIZER)
    use_gradient_checkpoint_reader: bool = flag(False, help="less memory, more time", group=OPTIMIZER)
    use_gradient_checkpoint_retriever: bool = flag(False, help="less memory, more time", group=OPTIMIZER)
    train_retriever: bool = flag(False, help="train it with the reader", group=RETRIEVER)
    gold_score_mode: str = flag("ppmean", choices=MODES, help="what it learns from", group=RETRIEVER)
    temperature_gold: float = flag(0.01, help="of what it learns from (default: 0.01)", group=RETRIEVER)
    temperature_score: float = flag(0.01, help="of its own scores (default: 0.01)", group=RETRIEVER)
    freeze_retriever_steps: int = flag(-1, help="until then it does not learn", group=RETRIEVER)
    refresh_index: str = flag(
        "-1", help="-1 (never), every so many steps, or 0-100:10,100-1000000:500", group=RETRIEVER
    )


@dataclass(frozen=True)
class TrainFlags(TrainingFlags, AtlasFlags):
    """All flags of train.py."""

    list_missing: bool = flag(False, help=LIST_MISSING, group=RUN)


@dataclass(frozen=True)
class EvaluateFlags(AtlasFlags):
    """All flags of evaluate.py."""

    list_missing: bool = flag(False, help=LIST_MISSING, group=RUN)


Flags = TypeVar("Flags", TrainFlags, EvaluateFlags)


def read_training(description: str | None, words: Sequence[str] | None = None) -> TrainFlags:
    """Read the flags of train.py, and check them."""
    return check_training(
        check(
            parse(
                TrainFlags,
                description,
                words,
                "teacherlm atlas-train --reader_model_type t5-base --train_data train.jsonl --closed_book",
            )
        )
    )


def read_evaluation(description: str | None, words: Sequence[str] | None = None) -> EvaluateFlags:
    """Read the flags of evaluate.py; those of train.py are accepted and left out, as one list may serve both."""
    ignored, rest = parser_of(TrainingFlags, add_help=False, allow_abbrev=False).parse_known_args(words)
    given = [f"--{one.name}" for one in fields(TrainingFlags) if one.name in vars(ignored)]
    notes = (f"ignored, of train.py: {', '.join(given)}",) if given else ()
    return check(
        replace(
            parse(
                EvaluateFlags,
                description,
                rest,
                "teacherlm atlas-evaluate --reader_model_type t5-base --eval_data test.jsonl --closed_book",
            ),
            notes=notes,
        )
    )


def say_notes(asked: AtlasFlags, stage: str) -> None:
    """Print, in the first worker, which flags change nothing here."""
    for note in asked.notes:
        workers.say(f"{stage}: {note}")


def check_training(asked: TrainFlags) -> TrainFlags:
    """Flags of training that contradict one another, or are out of range, are refused."""
    if not asked.train_data:
        raise UserError("--train_data: at least one file of questions was expected")
    positive = ("total_steps", "accumulation_steps", "eval_freq", "log_freq", "save_freq", "temperature_gold")
    for name in (*positive, "temperature_score", "retriever_n_context"):
        if getattr(asked, name) <= 0:
            raise UserError(f"--{name}: a positive number was expected, found {getattr(asked, name)}")
    parse_schedule(asked.refresh_index)
    if asked.retrieve_only:
        raise UserError("--retrieve_only is of evaluate.py: nothing would learn")
    of_retriever = ("train_retriever", "query_side_retriever_training", "use_gradient_checkpoint_retriever")
    off = [name for name in of_retriever if getattr(asked, name) and not asked.retrieves]
    if off:
        why = "--closed_book" if asked.closed_book else "--use_file_passages"
        note = f"off, as {why} has no retriever: {', '.join(f'--{name}' for name in off)}"
        asked = replace(asked, notes=(*asked.notes, note), **dict.fromkeys(off, False))
    if asked.shard_grads and not asked.shard_optim:
        raise UserError("--shard_grads shards the optimizer's states too: --shard_optim was expected with it")
    if asked.retrieves and asked.retriever_n_context < asked.n_context:
        raise UserError(
            f"--retriever_n_context {asked.retriever_n_context}: the reader learns from the first --n_context "
            f"{asked.n_context} of them; at least as many were expected"
        )
    return asked


def check(asked: Flags) -> Flags:
    """Complete the flags; closed book means one empty passage, as in the reference.

    Raises:
        UserError: flags contradict one another, or a number is out of range.
    """
    unused = [one for one in unused_flags() if getattr(asked, one.name) is not one.default]
    said = [f"--{one.name} is not used: {one.metadata['help']}" for one in unused]
    asked = replace(asked, notes=(*asked.notes, *said))
    positive = ("per_gpu_batch_size", "text_maxlength", "n_context", "per_gpu_embedder_batch_size")
    for name in (*positive, "generation_num_beams", "save_index_n_shards"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name}: a positive number was expected, found {getattr(asked, name)}")
    if asked.closed_book and asked.retrieve_only:
        raise UserError("--closed_book retrieves nothing; leave out --retrieve_only")
    if asked.use_file_passages and asked.retrieve_only:
        raise UserError("--use_file_passages retrieves nothing; leave out --retrieve_only")
    if asked.closed_book:
        asked = replace(asked, n_context=1, retriever_n_context=1, encoder_format="{query}")
    if asked.retrieves and not (asked.passages or asked.load_index_path):
        raise UserError(
            "what to retrieve from is missing: --passages FILE ... or --load_index_path FOLDER (or --closed_book)"
        )
    for file in asked.passages:
        if not file.is_file():
            raise UserError(f"{file}: no such file; JSON lines of passages were expected (--passages)")
    if not asked.list_missing:  # which is asked before an earlier stage has made them
        for file in asked.eval_data:
            require_questions(file, "--eval_data")
        for file in asked.train_data if isinstance(asked, TrainFlags) else ():
            require_questions(file, "--train_data")
    if asked.retrieve_with_rerank and asked.n_to_rerank_with_retrieve_with_rerank < asked.n_context:
        raise UserError(
            f"--n_to_rerank_with_retrieve_with_rerank {asked.n_to_rerank_with_retrieve_with_rerank}: at least "
            f"--n_context {asked.n_context} was expected"
        )
    if asked.passages and asked.load_index_path:
        raise UserError("--passages and --load_index_path: one of them was expected")
    if asked.save_index_path and asked.load_index_path:
        raise UserError("--save_index_path saves what is made of --passages; it is loaded here, leave it out")
    if asked.faiss_code_size and asked.index_mode == "flat":
        raise UserError("--faiss_code_size is of --index_mode faiss")
    for name, texts in FORMATS.items():
        if getattr(asked, name) is not None:
            check_format(name, getattr(asked, name), texts)
    if asked.decoder_format is not None and "{target}" not in asked.decoder_format:
        raise UserError(f"--decoder_format: {asked.decoder_format!r}: {{target}} was expected in it")
    if asked.save_index_path and not asked.list_missing:
        require_writable(asked.save_index_path)  # now, not after the passages are embedded
    return asked


def unused_flags() -> list[Field[Any]]:
    """The flags that are accepted and change nothing."""
    return [one for one in fields(AtlasFlags) if one.metadata.get("group") == UNUSED]


def require_questions(file: Path, given: str) -> None:
    """Refuse a file that is not there; where one of its name is in a folder beside, the message names it.

    The documentation of the 5-shot experiment gives individual_valid/DOMAIN.test.jsonl, which is in individual_test.
    """
    if file.is_file():
        return
    near = sorted(found for found in file.parent.parent.glob(f"*/{file.name}") if found.is_file())
    hint = f"; {near[0]} is there" if near else "; JSON lines of questions were expected"
    raise UserError(f"{file}: no such file ({given}){hint}")


def check_format(name: str, text: str, known: tuple[str, ...]) -> None:
    """Formats are only filled with texts: `{text.__class__}` or `{text!r}` is none."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"--{name}: {text!r}: {error}") from error
    for _, field, form, conversion in parts:
        if field is not None and (field not in known or form or conversion):
            raise UserError(
                f"--{name}: {{{field}}} is not known; there are: {', '.join(f'{{{one}}}' for one in known)}"
            )
