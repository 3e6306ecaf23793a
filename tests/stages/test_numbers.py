"""Numbers among the flags of the stages: one that is not finite or out of its range is refused in a line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import only_error

WORDS = {
    "enhance": ["--name", "field:sentence", "--input", "{jsonl}", "--output", "out.jsonl", "--task_type", "cot_text"],
    "merge": ["--input", "{jsonl}", "--output", "out.jsonl"],
    "data_prepare": ["--benchmark", "sample", "--output_dir", "out", "--test_dir", "out"],
    "evaluate": ["--model_args", "pretrained={model}", "--tasks", "sample", "--output_path", "out"],
}


@pytest.mark.parametrize(
    ("stage", "flag", "value"),
    [
        *[("enhance", "temperature", value) for value in ("nan", "inf", "-inf", "-0.5")],
        *[("enhance", "top_p", value) for value in ("nan", "inf", "0", "1.5")],
        ("enhance", "num_tokens", "0"),
        ("enhance", "num_completions", "0"),
        ("enhance", "seed", "-1"),
        ("enhance", "max_failures", "-1"),
        ("enhance", "num_tokens", "nan"),
        ("merge", "shards", "1"),
        ("merge", "shards", "nan"),
        ("data_prepare", "limit", "0"),
        ("data_prepare", "limit", "inf"),
        ("evaluate", "limit", "0"),
        ("evaluate", "limit", "-3"),
        ("evaluate", "num_fewshot", "-1"),
        ("evaluate", "seed", "-1"),
        ("evaluate", "batch_size", "0"),
        ("evaluate", "batch_size", "²"),
        ("evaluate", "batch_size", "nan"),
    ],
)
def test_a_number_that_cannot_be_is_refused(
    stage: str,
    flag: str,
    value: str,
    prepared: Path,
    tiny_llama: Path,
    tmp_path: Path,
    inside: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.format(jsonl=prepared / "SAMPLE.jsonl", model=tiny_llama) for word in WORDS[stage]]
    assert f"--{flag}" in only_error(inside(stage, *words, f"--{flag}={value}"))
    assert not list(tmp_path.iterdir())
