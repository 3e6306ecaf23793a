"""The sample benchmark is balanced, has no leak between its splits, and has CREAK's fields."""

import itertools
import re
from collections import Counter

import pytest
from support.files import sample_claims

SPLITS = {"train": 160, "dev": 80}
CLAIMS = {split: list(sample_claims(split)) for split in SPLITS}
ALL = [claim for split in SPLITS for claim in CLAIMS[split]]
FIELDS = ["ex_id", "sentence", "explanation", "label", "entity", "en_wiki_pageid", "entity_mention_loc"]


@pytest.mark.parametrize(("split", "count"), SPLITS.items())
def test_each_label_is_half_of_a_split(split: str, count: int) -> None:
    assert Counter(claim["label"] for claim in CLAIMS[split]) == {"true": count // 2, "false": count // 2}


def test_every_claim_has_the_fields_of_creak() -> None:
    assert [claim for claim in ALL if list(claim) != FIELDS] == []


@pytest.mark.parametrize("field", ["ex_id", "sentence", "explanation", "entity"])
def test_no_value_occurs_twice_in_the_splits(field: str) -> None:
    assert [value for value, count in Counter(claim[field] for claim in ALL).items() if count > 1] == []


def test_the_mention_of_an_entity_is_its_name_in_the_sentence() -> None:
    """A name may end with a distinction from equal names: "Mercury (element)" is mentioned as "Mercury"."""
    for claim in ALL:
        [[start, end]] = claim["entity_mention_loc"]
        name = re.sub(r" \(.*\)$", "", claim["entity"])
        assert claim["sentence"][start:end].casefold() == name.casefold(), claim["ex_id"]


def test_no_two_sentences_share_half_of_their_words() -> None:
    words = {claim["ex_id"]: set(re.findall(r"\w+", claim["sentence"].casefold())) for claim in ALL}
    near = [
        (one, other)
        for (one, first), (other, second) in itertools.combinations(words.items(), 2)
        if len(first & second) / len(first | second) >= 0.5
    ]
    assert near == []


@pytest.mark.parametrize("field", ["sentence", "explanation"])
def test_every_text_is_one_sentence(field: str) -> None:
    assert [claim[field] for claim in ALL if not re.fullmatch(r"[^.!?\s]([^.!?]|[.!?](?!\s|$))*\.", claim[field])] == []
