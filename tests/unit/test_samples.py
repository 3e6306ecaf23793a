"""Samples as token ids: the part of a text that finetuning uses, and the part that has a loss."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from support.files import sample_claims
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from teacherlm.core.errors import UserError
from teacherlm.finetune.fields import (
    PhaseSampler,
    TrainingFields,
    choose_samples,
    choose_texts,
    dataset_order,
    parse_fields,
    rows_by_sample,
)
from teacherlm.finetune.samples import cut_samples, tokenize
from teacherlm.finetune.sets import TrainingRows, TrainingSet

SENTENCES = [claim["sentence"] for claim in sample_claims()]
TEXT = parse_fields("text")


def test_a_sample_that_is_too_long_keeps_its_last_tokens_and_is_listed(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    whole = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    limit = sorted(map(len, whole))[len(whole) // 2]  # half of the samples are at least as long
    tokens, counts = tokenize(Dataset.from_dict({"text": SENTENCES}), tokenizer, TEXT, limit, False, 0)
    assert counts == [len(SENTENCES)]
    assert tokens["input_ids"][:] == [ids[len(ids) - min(limit, len(ids)) :] for ids in whole]
    long = [(number + 1, len(ids)) for number, ids in enumerate(whole) if len(ids) > limit]
    assert 0 < len(long) < len(whole)
    assert [(row["sample"], row["tokens"]) for row in cut_samples(tokens, limit)] == long


def test_samples_that_are_all_too_long_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="every sample has more than 2 tokens; the shortest"):
        tokenize(
            Dataset.from_dict({"text": SENTENCES[:2]}), AutoTokenizer.from_pretrained(tiny_llama), TEXT, 2, False, 0
        )


def test_a_sample_without_text_is_named(tiny_llama: Path) -> None:
    dataset = Dataset.from_dict({"text": ["one", "two", ""]})
    with pytest.raises(UserError, match="sample 3: the field 'text' is empty"):
        tokenize(dataset, AutoTokenizer.from_pretrained(tiny_llama), TEXT, 10, False, 0)


def test_the_loss_on_the_completion_begins_at_the_letter(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = "Q: Is the moon a planet? (A) yes (B) no A: The answer is (B). It circles the earth."
    tokens, _ = tokenize(Dataset.from_dict({"text": [text]}), tokenizer, TEXT, 500, True, 0)
    row = tokens[0]
    learnt = tokenizer.decode(row["input_ids"][row["skipped"] :])
    assert "B). It circles the earth." in learnt
    assert "answer" not in learnt
    cut, _ = tokenize(Dataset.from_dict({"text": [text, "Q: a A: The answer is (A)."]}), tokenizer, TEXT, 40, True, 0)
    removed = len(row["input_ids"]) - 40
    assert removed > 0
    assert cut[0]["skipped"] == max(0, row["skipped"] - removed)


def test_texts_end_with_the_end_of_text_token_only_once(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    dataset = Dataset.from_dict({"text": SENTENCES})
    plain, _ = tokenize(dataset, tokenizer, TEXT, 500, False, 0)
    end = 7
    ended, _ = tokenize(dataset, tokenizer, TEXT, 500, False, 0, end=end)
    assert ended["input_ids"] == [[*ids, end] for ids in plain["input_ids"]]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", end)])
    own, _ = tokenize(dataset, tokenizer, TEXT, 500, False, 0, end=end)
    assert own["input_ids"] == ended["input_ids"]
    cut, _ = tokenize(dataset, tokenizer, TEXT, 25, False, 0, end=end)
    assert {ids[-1] for ids in cut["input_ids"]} == {end}


@pytest.mark.parametrize("said", ["It is.", "The answer is clear.", "The answer is (A), as it is."])
def test_a_completion_that_begins_with_an_explanation_begins_after_the_mark(said: str, tiny_llama: Path) -> None:
    """A prompt at test time ends with `A:`, so the student writes the blank too. The question has ` A:` itself."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    question, explanation = "Q: Is vitamin A: good? (A) yes (B) no A: ", f"{said} The answer is ("
    text = f"{question}{explanation}A)."
    spans = [["question", len(question)], ["explanation", len(question + explanation)], ["answer", len(text)]]
    row = {"cot_first": [text], "parts": [json.dumps({"cot_first": spans})]}
    field = TrainingFields({"cot_first": 1.0}, False)
    tokens, _ = tokenize(Dataset.from_dict(row), tokenizer, field, 500, True, 0)
    ids, skipped = tokens[0]["input_ids"], tokens[0]["skipped"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    before = tokenizer.decode(ids[:skipped], skip_special_tokens=True)
    assert whole[len(before) :].startswith(f" {said} The answer is (A)")
    weighted, _ = tokenize(Dataset.from_dict(row), tokenizer, field, 500, False, 0, with_parts=True)
    assert weighted[0]["parts"][skipped - 1 : skipped + 1] == [0, 2]


def test_a_text_without_an_answer_has_no_completion(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="sample 2: the field 'text' has no ` A: The answer is"):
        dataset = Dataset.from_dict({"text": ["Q: a A: The answer is (A).", "free text"]})
        tokenize(dataset, AutoTokenizer.from_pretrained(tiny_llama), TEXT, 99, True, 0)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("cot_tail", TrainingFields({"cot_tail": 1.0}, False)),
        ("text:1,cot_tail:2.5", TrainingFields({"text": 1.0, "cot_tail": 2.5}, False)),
        ("text:2", TrainingFields({"text": 2.0}, False)),
        ("text,cot_tail", TrainingFields({"text": 1.0, "cot_tail": 1.0}, True)),
    ],
)
def test_training_fields(text: str, fields: TrainingFields) -> None:
    assert parse_fields(text) == fields


@pytest.mark.parametrize(
    "text", ["", "text,", "text,text", "text:1,cot_tail", "text:0", "text:x", "text:-1", "text:nan"]
)
def test_a_task_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--task_type"):
        parse_fields(text)


def test_weights_say_how_often_an_epoch_has_each_sample() -> None:
    chosen = dict(choose_samples(parse_fields("text:0.5,cot_tail:2,error_tail:1.25"), range(40), seed=3))
    assert len(chosen["text"]) == len(set(chosen["text"])) == 20
    assert sorted(chosen["cot_tail"]) == sorted([*range(40)] * 2)
    assert len(chosen["error_tail"]) == 50
    assert set(chosen["error_tail"]) == set(range(40))
    assert chosen == dict(choose_samples(parse_fields("text:0.5,cot_tail:2,error_tail:1.25"), range(40), seed=3))
    assert chosen["text"] != dict(choose_samples(parse_fields("text:0.5"), range(40), seed=4))["text"]


def test_fields_are_tokenized_one_after_the_other(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    dataset = Dataset.from_dict({"text": ["one moon", "two moons"], "cot_tail": ["three", "four"]})
    tokens, counts = tokenize(dataset, tokenizer, parse_fields("text,cot_tail"), 9, False, 0)
    assert counts == [2, 2]
    expected = [tokenizer(text)["input_ids"] for text in ("one moon", "two moons", "three", "four")]
    assert tokens["input_ids"][:] == expected
    assert tokens["sample"][:] == [1, 2, 1, 2]


def test_an_epoch_has_phase_after_phase_shuffled_anew() -> None:
    sampler = PhaseSampler([30, 20], seed=1)
    first = list(sampler)
    assert sorted(first[:30]) == list(range(30))
    assert sorted(first[30:]) == list(range(30, 50))
    assert first[:30] != list(range(30))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(PhaseSampler([30, 20], seed=2)) != first


def test_without_shuffling_an_epoch_has_the_dataset_s_order() -> None:
    sampler = PhaseSampler([30, 20], seed=1, shuffle=False)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(range(50))


def test_a_mixture_in_the_dataset_s_order_has_each_sample_in_all_its_fields(tiny_llama: Path) -> None:
    dataset = Dataset.from_dict({"text": ["one", "two"], "cot_tail": ["three", "four"]})
    fields = parse_fields("text:1,cot_tail:2")
    tokens, _ = tokenize(dataset, AutoTokenizer.from_pretrained(tiny_llama), fields, 9, False, 0)
    ordered = tokens.select(dataset_order(tokens["sample"]))
    assert ordered["sample"][:] == [1, 1, 1, 2, 2, 2]
    assert ordered["field"][:] == ["text", "cot_tail", "cot_tail"] * 2


def test_an_epoch_is_filled_up_with_no_sample_twice() -> None:
    order = list(PhaseSampler([7, 3], seed=1, multiple=4))
    assert sorted(order) == [*range(10), 10, 10]  # 10 is the filler
    assert order[10:] == [10, 10]
    assert len(PhaseSampler([8], seed=1, multiple=4)) == 8


def test_each_epoch_has_one_text_of_each_sample(tiny_llama: Path) -> None:
    """Text e mod k of a sample's k texts is in epoch e; a sample that an epoch has twice has two texts."""
    numbers = [1, 1, 1, 1, 3, 4, 4]  # a filter has dropped the second sample, and texts of the others
    groups = rows_by_sample(numbers)
    assert groups == [range(4), range(4, 5), range(5, 7)]
    words = [f"sample {number} text {row}" for row, number in enumerate(numbers)]
    dataset = Dataset.from_dict({"text": words, "cot_tail": [f"tail of {text}" for text in words]})
    rows = TrainingRows(dataset, (TrainingSet(Path("set")),), (0,), groups)
    fields, tokenizer = parse_fields("cot_tail:2,text:1"), AutoTokenizer.from_pretrained(tiny_llama)
    tokens, counts = tokenize(dataset, tokenizer, fields, 50, False, 0, None, False, rows)
    assert counts == [14, 7]
    texts, phases, samples = choose_texts(fields, groups, seed=0)
    assert phases == [6, 3] and samples == [0, 1, 2] * 3
    sampler = PhaseSampler([9], seed=1, multiple=4, texts=texts)
    assert len(sampler) == 12
    for epoch in range(6):
        sampler.set_epoch(epoch)
        *order, last, other, third = list(sampler)
        assert last == other == third == len(tokens)  # the filler
        expected = [f"tail of {words[group[(epoch + n) % len(group)]]}" for n in range(2) for group in groups]
        expected += [words[group[epoch % len(group)]] for group in groups]
        found = [tokens[place]["input_ids"] for place in order]
        assert sorted(found) == sorted(tokenizer(text)["input_ids"] for text in expected)
    ordered = texts.select(dataset_order(samples))
    plain = list(PhaseSampler([9], seed=1, shuffle=False, texts=ordered))
    assert [tokens[place]["sample"] for place in plain] == [1, 2, 1, 5, 5, 5, 6, 7, 6]
