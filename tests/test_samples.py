"""Samples as token ids: what finetuning sees of a text, and what of a batch has a loss."""

from pathlib import Path

import pytest
import torch
from conftest import sample_claims
from datasets import Dataset
from samples import Collator, tokenize
from transformers import AutoModelForCausalLM, AutoTokenizer

from teacherlm.errors import UserError

SENTENCES = [claim["sentence"] for claim in sample_claims()]


def test_a_sample_that_is_too_long_keeps_its_last_tokens_and_is_counted(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    whole = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    limit = sorted(map(len, whole))[len(whole) // 2]  # half of them are longer, or as long
    tokens, cut = tokenize(Dataset.from_dict({"text": SENTENCES}), tokenizer, "text", limit)
    assert tokens["input_ids"][:] == [ids[len(ids) - min(limit, len(ids)) :] for ids in whole]
    assert 0 < cut == sum(len(ids) > limit for ids in whole)


def test_a_sample_without_text_is_named(tiny_llama: Path) -> None:
    dataset = Dataset.from_dict({"text": ["one", "two", ""]})
    with pytest.raises(UserError, match="sample 3: the field 'text' is empty"):
        tokenize(dataset, AutoTokenizer.from_pretrained(tiny_llama), "text", 10)


def test_padding_is_at_the_right_unattended_and_without_loss() -> None:
    batch = Collator(pad_token_id=9)([{"input_ids": [1, 2, 9]}, {"input_ids": [3]}])
    assert batch["input_ids"].tolist() == [[1, 2, 9], [3, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 9], [3, -100, -100]]  # a real token with the padding's id keeps its loss


def test_the_loss_of_a_padded_batch_is_that_of_its_samples_alone(tiny_model: Path) -> None:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    samples = [{"input_ids": tokenizer(sentence)["input_ids"]} for sentence in SENTENCES[:4]]
    collate = Collator(tokenizer.pad_token_id)
    predicted = [len(sample["input_ids"]) - 1 for sample in samples]
    with torch.inference_mode():
        together = float(model(**collate(samples)).loss)
        alone = [float(model(**collate([sample])).loss) for sample in samples]
    assert len(set(predicted)) > 1
    expected = sum(loss * count for loss, count in zip(alone, predicted)) / sum(predicted)
    assert together == pytest.approx(expected, abs=1e-5)
