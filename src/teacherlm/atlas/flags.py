"""The flags of train.py and evaluate.py, with the reference's names, and their checks."""

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
"""Maps each flag that is a format to the names of the texts that it may contain."""
PERMUTATIONS = ("single", "cyclic", "all")
OTHER_TASK = "it belongs to a task other than multiple choice"

RUN, MODEL, CHOICE, PASSAGES, INDEX = "run", "reader and retriever", "multiple choice", "passages", "index"
TRAINING, OPTIMIZER, RETRIEVER = "training", "optimizer", "training of the retriever"
UNUSED = "flags of the reference that are accepted and not used"
"""The group of flags without an effect. Their help says why."""


@dataclass(frozen=True)
class AtlasFlags:
    """The flags that evaluate.py and train.py share."""

    notes: tuple[str, ...] = ()
    """Messages about flags without an effect in this run."""

    name: str = flag("experiment_name", help="the name of the run and of its folder", group=RUN)
    checkpoint_dir: Path = flag(Path("checkpoint"), help="the folder for the run's folder", group=RUN)
    model_path: str = flag(
        "none", help="the folder of a checkpoint; none (default) uses the pretrained T5 and encoder", group=RUN
    )
    eval_data: tuple[Path, ...] = flag((), help="files of questions (JSON lines) to evaluate", group=RUN)
    task: str = flag("multiple_choice", choices=["multiple_choice"], help="the only supported task", group=RUN)
    per_gpu_batch_size: int = flag(1, help="number of prompts per worker and batch (default: 1)", group=RUN)
    precision: str = flag("fp32", choices=DTYPES, help="precision of the computation (default: fp32)", group=RUN)
    seed: int = flag(0, help="seed of the random numbers (default: 0)", group=RUN)
    main_port: int = flag(
        -1, help="port of the first worker under srun (default: derived from the Slurm job step)", group=RUN
    )
    write_results: bool = flag(False, help="write the predictions", group=RUN)
    dont_write_passages: bool = flag(False, help="omit the passages from the predictions", group=RUN)
    reader_model_type: str = flag(help="the reader, a T5: a hub id, a folder, or a name in models/", group=MODEL)
    retriever_model_path: str = flag(
        "facebook/contriever",
        help="the retriever's encoder: a hub id, a folder, or a name in models/ (default: facebook/contriever)",
        group=MODEL,
    )
    text_maxlength: int = flag(
        200, help="maximum number of tokens of a query with its passage (default: 200)", group=MODEL
    )
    target_maxlength: int | None = flag(None, help="maximum number of tokens of a target", group=MODEL)
    n_context: int = flag(1, help="number of passages per question for the reader (default: 1)", group=MODEL)
    retriever_n_context: int = flag(
        5, help="number of passages per question for training the retriever (default: 5)", group=MODEL
    )
    encoder_format: str = flag(
        "{query} title: {title} context: {text}", help="the format of the reader's input", group=MODEL
    )
    retriever_format: str = flag("{title} {text}", help="the format of a passage for the encoder", group=MODEL)
    decoder_format: str | None = flag(
        None, help="the format of the reader's target, with {target} (default: the target alone)", group=MODEL
    )
    decoder_prompt_format: str | None = flag(
        None, help="the text with which the decoder begins, with {query} (default: nothing)", group=MODEL
    )
    generation_max_length: int = flag(
        128, help="maximum number of tokens that the reader writes (default: 128)", group=MODEL
    )
    generation_min_length: int | None = flag(
        None, help="minimum number of tokens that the reader writes (default: no minimum)", group=MODEL
    )
    generation_num_beams: int = flag(
        1, help="number of beams of the beam search (default: 1, which is greedy)", group=MODEL
    )
    generation_length_penalty: float = flag(
        1.0, help="length penalty of the beam search; above 0 it favours long texts (default: 1)", group=MODEL
    )
    query_side_retriever_training: bool = flag(
        False,
        help="give the passage encoder separate weights, so that only the query encoder is trained",
        group=MODEL,
    )
    multiple_choice_num_options: int = flag(4, help="number of options per question (default: 4)", group=CHOICE)
    multiple_choice_train_permutations: str = flag(
        "single",
        choices=PERMUTATIONS,
        help="the orders of options in which a question is learned (default: single)",
        group=CHOICE,
    )
    multiple_choice_eval_permutations: str = flag(
        "single",
        choices=PERMUTATIONS,
        help="the orders of options in which a question is asked; their probabilities are averaged (default: single)",
        group=CHOICE,
    )
    closed_book: bool = flag(False, help="use no passages, only the T5", group=PASSAGES)
    use_file_passages: bool = flag(
        False, help="use the passages in the questions' field `passages` instead of retrieval", group=PASSAGES
    )
    retrieve_only: bool = flag(False, help="write the retrieved passages, without a reader", group=PASSAGES)
    passages: tuple[Path, ...] = flag(
        (), help="files of passages (JSON lines {id, title, section, text}) to index", group=PASSAGES
    )
    max_passages: int = flag(
        -1, help="maximum number of passages; the first ones are used (default: all)", group=PASSAGES
    )
    per_gpu_embedder_batch_size: int = flag(
        512, help="maximum number of passages that are embedded at a time (default: 512)", group=PASSAGES
    )
    retrieve_with_rerank: bool = flag(
        False, help="embed the best passages again with the current passage encoder, and rerank them", group=PASSAGES
    )
    n_to_rerank_with_retrieve_with_rerank: int = flag(
        128, help="number of passages to rerank (default: 128)", group=PASSAGES
    )
    load_index_path: Path | None = flag(None, help="a saved index, instead of --passages", group=INDEX)
    save_index_path: Path | None = flag(None, help="the folder in which the index of --passages is saved", group=INDEX)
    save_index_n_shards: int = flag(
        128,
        help="number of files for the index's vectors; also that of a loaded index in the reference's format "
        "(default: 128)",
        group=INDEX,
    )
    index_mode: str = flag(
        "flat", choices=["flat", "faiss"], help="flat (default) is exact, faiss may be compressed", group=INDEX
    )
    faiss_index_type: str = flag("flat", choices=KINDS, help="the kind of FAISS index (default: flat)", group=INDEX)
    faiss_code_size: int | None = flag(None, help="number of bytes per vector (for pq and ivfpq)", group=INDEX)
    local_rank: int | None = flag(
        None, help="torchrun sets LOCAL_RANK and srun sets SLURM_LOCALID instead", group=UNUSED
    )
    alpha: float | None = flag(None, help="AdamW has no alpha; the reference does not use it either", group=UNUSED)
    filtering_overretrieve_ratio: int | None = flag(
        None, help="retrieved passages are not filtered for multiple choice", group=UNUSED
    )
    compute_crossattention_stats: bool = flag(
        False, help="log.jsonl has no correlations; evalnormsum learns from the same scores", group=UNUSED
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
        """The kind of compression of the index's vectors; None if they are not compressed."""
        return self.faiss_index_type if self.index_mode == "faiss" else None


@dataclass(frozen=True)
class TrainingFlags:
    """The flags of train.py in addition to the common ones."""

    train_data: tuple[Path, ...] = flag((), help="files of questions (JSON lines) to train on", group=TRAINING)
    total_steps: int = flag(1000, help="number of batches per worker in the run (default: 1000)", group=TRAINING)
    accumulation_steps: int = flag(1, help="number of batches per optimizer step (default: 1)", group=TRAINING)
    shuffle: bool = flag(False, help="shuffle the questions in each epoch", group=TRAINING)
    dropout: float = flag(0.1, help="dropout rate (default: 0.1)", group=TRAINING)
    eval_freq: int = flag(500, help="number of steps between evaluations of --eval_data (default: 500)", group=TRAINING)
    log_freq: int = flag(100, help="number of steps between lines of log.jsonl (default: 100)", group=TRAINING)
    save_freq: int = flag(5000, help="number of steps between checkpoints (default: 5000)", group=TRAINING)
    save_optimizer: bool = flag(
        False, help="save with each checkpoint the state that a run needs to resume from it", group=TRAINING
    )
    lr: float = flag(1e-4, help="learning rate of the reader (default: 1e-4)", group=OPTIMIZER)
    lr_retriever: float = flag(1e-5, help="learning rate of the retriever (default: 1e-5)", group=OPTIMIZER)
    scheduler: str = flag(
        "cosine", choices=SCHEDULERS, help="schedule of the learning rates (default: cosine)", group=OPTIMIZER
    )
    warmup_steps: int = flag(1000, help="number of warmup steps (default: 1000)", group=OPTIMIZER)
    scheduler_steps: int | None = flag(
        None, help="the step at which the schedule ends (default: --total_steps)", group=OPTIMIZER
    )
    weight_decay: float = flag(0.1, help="weight decay of AdamW (default: 0.1)", group=OPTIMIZER)
    clip: float = flag(1.0, help="maximum norm of the gradient (default: 1)", group=OPTIMIZER)
    beta2: float = flag(0.999, help="beta2 of AdamW (default: 0.999)", group=OPTIMIZER)
    epsilon: float = flag(1e-6, help="epsilon of AdamW (default: 1e-6)", group=OPTIMIZER)
    shard_optim: bool = flag(False, help="each worker keeps only a part of the optimizer states", group=OPTIMIZER)
    shard_grads: bool = flag(False, help="each worker also keeps only a part of the gradients", group=OPTIMIZER)
    use_gradient_checkpoint_reader: bool = flag(
        False, help="compute the reader's layers again in the backward pass, which saves memory", group=OPTIMIZER
    )
    use_gradient_checkpoint_retriever: bool = flag(
        False, help="compute the retriever's layers again in the backward pass, which saves memory", group=OPTIMIZER
    )
    train_retriever: bool = flag(False, help="train the retriever too", group=RETRIEVER)
    gold_score_mode: str = flag(
        "ppmean", choices=MODES, help="the reader's signal from which it learns (default: ppmean)", group=RETRIEVER
    )
    temperature_gold: float = flag(0.01, help="temperature of the reader's scores (default: 0.01)", group=RETRIEVER)
    temperature_score: float = flag(0.01, help="temperature of the retriever's scores (default: 0.01)", group=RETRIEVER)
    freeze_retriever_steps: int = flag(
        -1, help="the step from which the retriever learns (default: the first)", group=RETRIEVER
    )
    refresh_index: str = flag(
        "-1",
        help="when the index is made again: -1 (never, the default), a number of steps, or intervals such as "
        "0-100:10,100-1000000:500",
        group=RETRIEVER,
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
    """Read the flags of evaluate.py. Flags of train.py are accepted and ignored, so that both programs can be given the
    same list."""
    ignored, rest = parser_of(TrainingFlags, add_help=False, allow_abbrev=False).parse_known_args(words)
    given = [f"--{one.name}" for one in fields(TrainingFlags) if one.name in vars(ignored)]
    notes = (f"these flags of train.py are ignored: {', '.join(given)}",) if given else ()
    example = "teacherlm atlas-evaluate --reader_model_type t5-base --eval_data test.jsonl --closed_book"
    return check(replace(parse(EvaluateFlags, description, rest, example), notes=notes))


def say_notes(flags: AtlasFlags, stage: str) -> None:
    """Print in the first worker which flags have no effect."""
    for note in flags.notes:
        workers.say(f"{stage}: {note}")


def check_training(flags: TrainFlags) -> TrainFlags:
    """Check the flags of training, and switch off those that need a retriever if there is none.

    Raises:
        UserError: flags contradict one another, or a number is out of range.
    """
    if not flags.train_data:
        raise UserError("--train_data: at least one file of questions was expected")
    positive = ("total_steps", "accumulation_steps", "eval_freq", "log_freq", "save_freq", "temperature_gold")
    for name in (*positive, "temperature_score", "retriever_n_context"):
        if getattr(flags, name) <= 0:
            raise UserError(f"--{name}: a positive number was expected, found {getattr(flags, name)}")
    parse_schedule(flags.refresh_index)
    if flags.retrieve_only:
        raise UserError("--retrieve_only is a flag of evaluate.py: in train.py nothing would learn")
    of_retriever = ("train_retriever", "query_side_retriever_training", "use_gradient_checkpoint_retriever")
    off = [name for name in of_retriever if getattr(flags, name) and not flags.retrieves]
    if off:
        why = "--closed_book" if flags.closed_book else "--use_file_passages"
        note = f"switched off, because {why} uses no retriever: {', '.join(f'--{name}' for name in off)}"
        flags = replace(flags, notes=(*flags.notes, note), **dict.fromkeys(off, False))
    if flags.shard_grads and not flags.shard_optim:
        raise UserError("--shard_grads also shards the optimizer states: give --shard_optim too")
    if flags.retrieves and flags.retriever_n_context < flags.n_context:
        raise UserError(
            f"--retriever_n_context {flags.retriever_n_context}: the reader learns from the first --n_context "
            f"{flags.n_context} of these passages, so at least {flags.n_context} was expected"
        )
    return flags


def check(flags: Flags) -> Flags:
    """Check and complete the flags. Closed book means one empty passage, as in the reference.

    Raises:
        UserError: flags contradict one another, or a number is out of range.
    """
    unused = [one for one in unused_flags() if getattr(flags, one.name) is not one.default]
    said = [f"--{one.name} is not used: {one.metadata['help']}" for one in unused]
    flags = replace(flags, notes=(*flags.notes, *said))
    positive = ("per_gpu_batch_size", "text_maxlength", "n_context", "per_gpu_embedder_batch_size")
    for name in (*positive, "generation_num_beams", "save_index_n_shards"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name}: a positive number was expected, found {getattr(flags, name)}")
    if flags.closed_book and flags.retrieve_only:
        raise UserError("--closed_book retrieves nothing; leave out --retrieve_only")
    if flags.use_file_passages and flags.retrieve_only:
        raise UserError("--use_file_passages retrieves nothing; leave out --retrieve_only")
    if flags.closed_book:
        flags = replace(flags, n_context=1, retriever_n_context=1, encoder_format="{query}")
    if flags.retrieves and not (flags.passages or flags.load_index_path):
        raise UserError(
            "there are no passages to retrieve from: give --passages FILE ... or --load_index_path FOLDER (or "
            "--closed_book)"
        )
    for file in flags.passages:
        if not file.is_file():
            raise UserError(f"{file}: no such file; JSON lines of passages were expected (--passages)")
    if not flags.list_missing:  # with --list_missing, an earlier stage may not have made the files yet
        for file in flags.eval_data:
            require_questions(file, "--eval_data")
        for file in flags.train_data if isinstance(flags, TrainFlags) else ():
            require_questions(file, "--train_data")
    if flags.retrieve_with_rerank and flags.n_to_rerank_with_retrieve_with_rerank < flags.n_context:
        raise UserError(
            f"--n_to_rerank_with_retrieve_with_rerank {flags.n_to_rerank_with_retrieve_with_rerank}: at least "
            f"--n_context {flags.n_context} was expected"
        )
    if flags.passages and flags.load_index_path:
        raise UserError("--passages and --load_index_path: only one of them was expected")
    if flags.save_index_path and flags.load_index_path:
        raise UserError("--save_index_path has no effect with --load_index_path; leave it out")
    if flags.faiss_code_size and flags.index_mode == "flat":
        raise UserError("--faiss_code_size needs --index_mode faiss")
    for name, texts in FORMATS.items():
        if getattr(flags, name) is not None:
            check_format(name, getattr(flags, name), texts)
    if flags.decoder_format is not None and "{target}" not in flags.decoder_format:
        raise UserError(f"--decoder_format: {flags.decoder_format!r}: it must contain {{target}}")
    if flags.save_index_path and not flags.list_missing:
        require_writable(flags.save_index_path)  # checked before the passages are embedded
    return flags


def unused_flags() -> list[Field[Any]]:
    """The flags that are accepted and have no effect."""
    return [one for one in fields(AtlasFlags) if one.metadata.get("group") == UNUSED]


def require_questions(file: Path, given: str) -> None:
    """Refuse a file that does not exist. If a neighbouring folder has a file of the same name, the message names it.

    The documentation of the 5-shot experiment names individual_valid/DOMAIN.test.jsonl, which is in individual_test.
    """
    if file.is_file():
        return
    near = sorted(found for found in file.parent.parent.glob(f"*/{file.name}") if found.is_file())
    hint = f"; {near[0]} exists" if near else "; JSON lines of questions were expected"
    raise UserError(f"{file}: no such file ({given}){hint}")


def check_format(name: str, text: str, known: tuple[str, ...]) -> None:
    """Refuse a format with anything other than plain names of texts, such as `{text.__class__}` or `{text!r}`."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"--{name}: {text!r}: {error}") from error
    for _, field, form, conversion in parts:
        if field is not None and (field not in known or form or conversion):
            raise UserError(f"--{name}: {{{field}}} is unknown; there are: {', '.join(f'{{{one}}}' for one in known)}")
