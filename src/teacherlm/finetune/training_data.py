"""The samples of a training as tokens: those of the datasets that the flags name, and the dev samples."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from teacherlm.catalog.text_parts import PARTS
from teacherlm.core.errors import UserError
from teacherlm.finetune.fields import TextChoice, TrainingFields, choose_texts, dataset_order, parse_fields
from teacherlm.finetune.on_policy import question_of
from teacherlm.finetune.samples import load_split, sample_rows, tokenize
from teacherlm.finetune.sets import TrainingRows, choose_epoch, join_sets, parse_sets
from teacherlm.finetune.soft_targets import TeacherTokens
from teacherlm.finetune.student import shares_of
from teacherlm.runtime.chat_student import ChatStudent
from teacherlm.runtime.loading import load_tokenizer
from teacherlm.runtime.model_config import load_config, vocabulary_size
from teacherlm.runtime.processes import say


@dataclasses.dataclass(frozen=True)
class Samples:
    """The samples of a training.

    Attributes:
        tokens: the samples of an epoch as tokens; with `texts`, all texts of these samples.
        phases: number of samples in each phase of the epoch.
        dev: the dev samples, on which the student is not trained, or None.
        tokenizer: the student's tokenizer.
        rows: the rows of the datasets, and which of them an epoch has.
        texts: which text each sample has in an epoch, if the dataset has several of each and an epoch has one.
        teacher: the teacher's distributions (soft_targets.TeacherTokens), or None.
        chat: the chat template by which the samples are conversations, or None.
    """

    tokens: datasets.Dataset
    phases: list[int]
    dev: datasets.Dataset | None
    tokenizer: Any
    rows: TrainingRows
    texts: TextChoice | None = None
    teacher: TeacherTokens | None = None
    chat: ChatStudent | None = None

    @property
    def per_epoch(self) -> int:
        """Number of samples in an epoch."""
        return sum(self.phases)

    def longest(self, most: int) -> int:
        """Number of tokens in the longest sample, at most `most`."""
        return min(most, max(max(part["tokens"]) for part in (self.tokens, self.dev) if part is not None))


def load_samples(flags: Any, training: Any, model_folder: Path) -> Samples:
    """The samples of an epoch, and with --dev_dataset the dev samples, as tokens."""
    datasets.disable_progress_bars()
    fields = parse_fields(flags.task_type)
    rows = load_rows(flags, fields, training.seed)
    tokenizer = load_tokenizer(model_folder)
    vocabulary = vocabulary_size(load_config(model_folder))
    how = (tokenizer, fields, flags.max_source_length, flags.loss_on == "completion", training.seed, vocabulary)
    with_parts = bool(flags.loss_weights or flags.on_policy)
    teacher = TeacherTokens(rows.dataset, tokenizer, vocabulary) if flags.kl_weight else None
    chat = None
    if flags.chat == "true":
        chat = ChatStudent(tokenizer, model_folder)
        say(f"finetune: each text is a conversation; only the assistant's turn has a loss{chat.described}")
    end = end_token(tokenizer, chat) if flags.end_of_text else None
    tokens, counts = tokenize(rows.dataset, *how, with_parts, rows, teacher, chat, end)
    if teacher is not None:
        say_known(tokens)
    texts = None
    if rows.groups is not None:
        texts, counts, samples = choose_texts(fields, rows.groups, training.seed, rows.pool)
        if not flags.shuffle and not fields.in_order:
            texts = texts.select(dataset_order(samples))
    elif not flags.shuffle and not fields.in_order:
        tokens = tokens.select(dataset_order(tokens["sample"]))
    dev = None
    if flags.dev_dataset:
        dev, _ = tokenize(
            load_split(Path(flags.dev_dataset), fields, train=False), *how, with_parts, chat=chat, end=end
        )
    if flags.tokens_per_batch is not None:
        longest = min(flags.max_source_length, max(tokens["tokens"]))
        of_student = ""
        if flags.on_policy:
            written = max(len(question_of(sample)) for sample in tokens) + flags.on_policy_tokens
            longest = max(longest, min(flags.max_source_length, written))
            of_student = ", with what the student may write,"
        if longest > flags.tokens_per_batch:
            raise UserError(
                f"--tokens_per_batch {flags.tokens_per_batch}: the longest sample{of_student} has {longest} tokens; "
                "give at least that"
            )
    require_parts(flags, [tokens, *([] if dev is None else [dev])])
    return Samples(tokens, counts if fields.in_order else [sum(counts)], dev, tokenizer, rows, texts, teacher, chat)


def end_token(tokenizer: Any, chat: ChatStudent | None) -> int:
    """The end-of-text token, for --end_of_text.

    Raises:
        UserError: the tokenizer has none, or the student learns conversations, whose turns end anyway.
    """
    if chat is not None:
        raise UserError("--end_of_text has no effect on a chat student, whose turns end by its template; leave it out")
    if tokenizer.eos_token_id is None:
        raise UserError("--end_of_text: the tokenizer has no end-of-text token; leave it out for this student")
    end: int = tokenizer.eos_token_id
    return end


def say_known(tokens: Any) -> None:
    """Print how many tokens the teacher wrote, by its distributions.

    Raises:
        UserError: there are none.
    """
    blocks = [block for of_sample in tokens["blocks"] for block in of_sample]
    known = sum(count for *_, count in blocks)
    if not known:
        raise UserError(
            "--kl_weight: no text has tokens that the teacher wrote; its distributions belong to other texts or to "
            "another tokenization"
        )
    say(f"finetune: the teacher's distribution is known for {known} of {sum(map(len, tokens['input_ids']))} tokens")


def load_rows(flags: Any, fields: TrainingFields, seed: int) -> TrainingRows:
    """The rows of the datasets, and which of them an epoch has."""
    sets = parse_sets(flags.dataset_name)
    parts = [load_split(one.folder, fields, train=True) for one in sets]
    rows = join_sets(sets, parts, fields.weights)
    if flags.explanations == "each_epoch":
        groups = [
            range(start + of_sample.start, start + of_sample.stop)
            for one, part, start in zip(sets, parts, rows.starts)
            for of_sample in sample_rows(part, one.folder)
        ]
        rows = dataclasses.replace(rows, groups=groups[: flags.max_train_samples])
    elif flags.max_train_samples:
        rows = dataclasses.replace(
            rows, dataset=rows.dataset.select(range(len(rows.dataset))[: flags.max_train_samples])
        )
    return choose_epoch(rows, [*fields.weights], seed, test_sets(flags), flags.overlaps == "leave_out")


def require_parts(flags: Any, tokenized: Sequence[datasets.Dataset]) -> None:
    """Refuse weights of parts that no sample has.

    Raises:
        UserError: the message names the part.
    """
    shares = shares_of(flags)
    for tokens in tokenized if shares else ():
        there = {part for row in tokens["parts"] for part in row}
        for index, part in enumerate(PARTS):
            if shares[index] and index not in there:
                raise UserError(
                    f"--loss_weights {flags.loss_weights}: no text in the field {flags.task_type} has the part {part}; "
                    "leave it out, or train on another field"
                )


def test_sets(flags: Any) -> list[Path]:
    """The folders of --test_sets."""
    return [Path(folder) for folder in (flags.test_sets or "").split(",") if folder]
