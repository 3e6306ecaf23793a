"""Benchmarks that a test writes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from teacherlm.core.errors import UserError

YAML = """\
title: CommonsenseQA
hub: tau/commonsense_qa
splits: {train: train, test: validation}
files: {train: train.jsonl, test: dev.jsonl}
question: "{{ question }}"
choices: ["{{ choices.text[0] }}", "{{ choices.text[1] }}", "{{ choices.text[2] }}"]
answer: "{{ answerKey }}"
"""


SAMPLE = {"question": "Where do bees live?", "choices": {"text": ["hive", "moon", "soup"]}, "answerKey": "A"}


def mistake(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        work()
    return str(caught.value)


def written(folder: Path, old: str = "", new: str = "") -> str:
    """The path of the YAML file, in which one piece was replaced."""
    assert old in YAML
    path = folder / "commonsense_qa.yaml"
    path.write_text(YAML.replace(old, new) if old else YAML + new, encoding="utf-8")
    return str(path)
