"""Convert the chosen text fields of samples to token ids. Texts that are too long are cut on their left."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Value, concatenate_datasets

from teacherlm.catalog.prompt_sets import NUMBERS, SHUFFLED
from teacherlm.catalog.text_parts import COLUMN
from teacherlm.core.errors import UserError
from teacherlm.core.saved_datasets import load_saved
from teacherlm.finetune.chat_samples import encode_conversations
from teacherlm.finetune.encoded import EncodedSample, find_completion
from teacherlm.finetune.fields import TrainingFields, choose_samples, rows_by_sample
from teacherlm.finetune.loss_parts import parts_of_tokens, spans_in
from teacherlm.finetune.sets import TrainingRows
from teacherlm.finetune.soft_targets import BLOCKS, TeacherTokens
from teacherlm.runtime.chat_student import ChatStudent
from teacherlm.runtime.tokens import require_embeddings, special_tokens


def require_dataset(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such dataset; data_prepare.py makes it")


def load_split(folder: Path, fields: TrainingFields, train: bool) -> Dataset:
    """The samples of a `datasets` folder, which must have the fields to train on.

    Args:
        train: whether to use the split train of a DatasetDict, or its other split.

    Raises:
        UserError: the folder, the split or a text field does not exist, or there are no samples. The message lists the
            existing splits or fields.
    """
    require_dataset(folder)
    dataset = load_saved(folder)
    if isinstance(dataset, DatasetDict):
        splits = [name for name in dataset if (name == "train") == train]
        if len(splits) != 1:
            wanted = "the split train" if train else "exactly one split other than train"
            raise UserError(f"{folder}: {wanted} was expected; there are: {', '.join(dataset)}")
        dataset = dataset[splits[0]]
    texts = [name for name, kind in dataset.features.items() if kind in (Value("string"), Value("large_string"))]
    texts = [name for name in texts if name != COLUMN]
    for field in fields.weights:
        if field not in texts:
            raise UserError(f"{folder}: no text field {field!r}; there are: {', '.join(texts)}")
    if not len(dataset):
        raise UserError(f"{folder}: empty; at least one sample was expected")
    return dataset


def sample_rows(dataset: Dataset, folder: Path) -> list[range]:
    """The rows of each sample of a dataset with a row per text.

    Raises:
        UserError: the dataset has no numbers of samples.
    """
    column = NUMBERS[0]
    if dataset.features.get(column) != Value("int64"):
        raise UserError(
            f"{folder}: --explanations each_epoch needs the field {column!r}, which data_prepare.py --explanations "
            "each_epoch writes"
        )
    return rows_by_sample(dataset.with_format("numpy")[column][:].tolist())


def tokenize(
    dataset: Dataset,
    tokenizer: Any,
    fields: TrainingFields,
    max_length: int,
    completion_only: bool,
    seed: int,
    vocabulary: int | None = None,
    with_parts: bool = False,
    rows: TrainingRows | None = None,
    teacher: TeacherTokens | None = None,
    chat: ChatStudent | None = None,
    end: int | None = None,
) -> tuple[Dataset, list[int]]:
    """The token ids of an epoch's samples, one field after the other, and the number of samples per field.

    No cache file is written. Each text is enclosed in the tokenizer's special tokens. A sample longer than `max_length`
    keeps the special tokens at its beginning and its last tokens, as in the reference, because the explanation is at
    the end.

    Args:
        vocabulary: number of rows of the model's embedding; None means unknown.
        with_parts: whether it has to be known which part of its text each token belongs to (loss_parts.py).
        rows: which samples an epoch has, and what messages call them; None means each row once. If a sample has
            several rows, all texts of an epoch's samples are converted; each epoch has one of them (fields.TextChoice).
        teacher: the teacher's distributions (soft_targets.py), or None.
        chat: the student's chat template, by which each sample becomes a conversation (chat_samples.py); None: the
            student is trained on plain text.
        end: the end-of-text token, with which each text ends; None: only if the tokenizer adds it.

    Returns:
        A dataset with the columns `input_ids`; `skipped`, the number of tokens on the left without a loss (0, or the
        tokens of the question or of the user's turn); `sample` and `field`, the origin of the sample; `tokens`, the
        number of tokens before the cut; with `with_parts` also `parts`, the part of each token; with `teacher` also
        `blocks`, the tokens that the teacher wrote. Then the number of samples per field.

    Raises:
        UserError: a sample has no text, no beginning of a completion, or a token without an embedding; or all samples
            are too long.
    """
    groups, pool = (None, None) if rows is None else (rows.groups, rows.pool)
    where = number_of if rows is None else rows.where
    count = len(dataset if groups is None else groups)
    parts = []
    for field, numbers in choose_samples(fields, range(count) if pool is None else pool, seed):
        if groups is not None:
            numbers = [row for index in numbers for row in groups[index]]
        with_column = (with_parts or completion_only or chat is not None) and COLUMN in dataset.column_names
        columns = [field, *([COLUMN] if with_column else [])]
        samples = dataset.select_columns(columns).select(numbers)
        how = (max_length, completion_only, vocabulary, with_parts, teacher, chat, end)
        encode = partial(encode_batch, tokenizer, field, numbers, where, *how)
        parts.append(samples.map(encode, batched=True, with_indices=True, remove_columns=columns, keep_in_memory=True))
    tokens = concatenate_datasets(parts)
    if all(count > max_length for count in tokens["tokens"]):
        raise UserError(
            f"every sample has more than {max_length} tokens; the shortest has {min(tokens['tokens'])}: "
            "increase --max_source_length, or use a student with a longer context"
        )
    return tokens, [len(part) for part in parts]


def encode_batch(
    tokenizer: Any,
    field: str,
    numbers: list[int],
    where: Callable[[int], str],
    max_length: int,
    completion_only: bool,
    vocabulary: int | None,
    with_parts: bool,
    teacher: TeacherTokens | None,
    chat: ChatStudent | None,
    end: int | None,
    batch: Mapping[str, list[str]],
    places: list[int],
) -> dict[str, list[Any]]:
    """The columns of `tokenize` for a batch of samples of one field.

    Args:
        numbers: for all samples of the field, their indices in the dataset, from 0.
        where: a function of such an index that returns what messages call the sample.
        places: the positions of the batch's samples in `numbers`.
    """
    names = [where(numbers[place]) for place in places]
    for name, text in zip(names, batch[field]):
        if not text:
            why = ": no other sample has its right answer" if field.endswith(SHUFFLED) else ""
            raise UserError(f"{name}: the field {field!r} is empty{why}; remove this sample")
    rows = [dict(zip(batch, values)) for values in zip(*batch.values())]
    how = (field, names, max_length, completion_only, with_parts)
    samples = encode_texts(tokenizer, rows, *how, end) if chat is None else encode_conversations(chat, rows, *how)
    for name, sample in zip(names, samples):
        require_embeddings(sample.ids, vocabulary, name)
    found: dict[str, list[Any]] = {"parts": [sample.parts for sample in samples]} if with_parts else {}
    if teacher is not None:
        found[BLOCKS] = [
            teacher.blocks(numbers[place], field, sample.ids, name, sample.opened)
            for place, name, sample in zip(places, names, samples)
        ]
    return {
        **found,
        "input_ids": [sample.ids for sample in samples],
        "skipped": [sample.skipped for sample in samples],
        "sample": [numbers[place] + 1 for place in places],
        "field": [field] * len(samples),
        "tokens": [sample.tokens for sample in samples],
    }


def encode_texts(
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    field: str,
    names: Sequence[str],
    max_length: int,
    completion_only: bool,
    with_parts: bool,
    end: int | None,
) -> list[EncodedSample]:
    """The plain texts of rows as tokens, with the tokenizer's special tokens around them.

    Args:
        names: what messages call each row.
        end: see `tokenize`.
    """
    texts = [row[field] for row in rows]
    if (completion_only or with_parts) and not tokenizer.is_fast:
        flag = "--loss_weights" if with_parts else "--loss_on completion"
        raise UserError(f"{flag} needs a fast tokenizer (tokenizer.json); leave it out for this student")
    before, after = special_tokens(tokenizer)
    after = [*after, end] if end is not None and end not in after else after
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=completion_only or with_parts)
    found = []
    for number, (row, name) in enumerate(zip(rows, names)):
        ids = before + encoded["input_ids"][number] + after
        gone = max(0, len(ids) - max_length)
        skipped, parts = 0, []
        if completion_only:
            start = find_completion(row, field, name)
            prompt = sum(end <= start for _, end in encoded["offset_mapping"][number])
            skipped = len(before) + max(0, prompt - gone)
        if with_parts:
            spans = spans_in(row, field, name)
            parts = parts_of_tokens(spans, encoded["offset_mapping"][number], len(before), len(after))
        cut = slice(len(before), len(before) + gone)
        kept, count = list(ids), len(ids)
        del kept[cut], parts[cut]
        found.append(EncodedSample(kept, 0, skipped, parts, count))
    return found


def number_of(row: int) -> str:
    """What messages call a row of a single dataset."""
    return f"sample {row + 1}"


def cut_samples(tokens: Dataset, max_length: int) -> list[dict[str, Any]]:
    """The number, field and number of tokens of each sample that was cut. Each sample is listed once."""
    columns = zip(tokens["sample"], tokens["field"], tokens["tokens"])
    long = dict.fromkeys(row for row in columns if row[2] > max_length)
    return [{"sample": sample, "field": field, "tokens": count} for sample, field, count in long]
