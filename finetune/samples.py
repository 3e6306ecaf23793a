"""Samples become token ids: the chosen text field, cut from its left when it is too long."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Value

from teacherlm.errors import UserError


def load_train_split(folder: Path, task_type: str) -> Dataset:
    """The samples of a `datasets` folder, checked for the field that is trained on.

    Raises:
        UserError: no such folder, no train split, no such text field (those it has are listed), or no samples.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such dataset; data_prepare.py makes it")
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not a datasets folder: {error}") from error
    if isinstance(dataset, DatasetDict):
        if "train" not in dataset:
            raise UserError(f"{folder}: no split train; there are: {', '.join(dataset)}")
        dataset = dataset["train"]
    texts = [name for name, kind in dataset.features.items() if kind in (Value("string"), Value("large_string"))]
    if task_type not in texts:
        raise UserError(f"{folder}: no text field {task_type!r}; there are: {', '.join(texts)}")
    if not len(dataset):
        raise UserError(f"{folder}: empty; at least one sample was expected")
    return dataset


def tokenize(dataset: Dataset, tokenizer: Any, task_type: str, max_length: int) -> tuple[Dataset, int]:
    """Token ids of every sample, in order, without a cache file; also how many samples were cut.

    A sample longer than `max_length` keeps its last tokens, as in the reference: the explanation is at the end.

    Raises:
        UserError: a sample has no text.
    """

    def encode(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        for index, text in zip(indices, batch[task_type]):
            if not text:
                raise UserError(f"sample {index + 1}: the field {task_type!r} is empty; remove this sample")
        ids = tokenizer(batch[task_type])["input_ids"]
        return {"input_ids": [row[-max_length:] for row in ids], "cut": [len(row) > max_length for row in ids]}

    tokens = dataset.map(
        encode, batched=True, with_indices=True, remove_columns=dataset.column_names, keep_in_memory=True
    )
    cut = sum(tokens["cut"])
    return tokens.remove_columns("cut"), cut


class Collator:
    """Pads a batch at the right to its longest sample; padding is attended to by none and has no loss.

    Args:
        pad_token_id: fills `input_ids`.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, samples: list[Mapping[str, list[int]]]) -> dict[str, Any]:
        import torch

        rows = [torch.tensor(sample["input_ids"]) for sample in samples]
        lengths_B = torch.tensor([len(row) for row in rows])
        pad = torch.nn.utils.rnn.pad_sequence
        mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        return {
            "input_ids": pad(rows, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": mask_BT.long(),
            "labels": pad(rows, batch_first=True, padding_value=-100),
        }
