"""The dozen most used architectures through all stages: exact, and as docs/reference/architectures.md has it."""

import json

import pytest
from support.sweep import Sweep, read_table, row_of
from support.tiny_architectures import Architecture, architectures, make_model

DOZEN = (
    *("llama", "qwen2", "qwen2 (no window)", "qwen3", "mistral", "gemma2", "gemma3", "gemma3_text", "phi3", "gpt2"),
    *("gpt_neox", "bloom", "opt", "falcon", "falcon (alibi)", "falcon (new decoder)"),
)
REFUSED = ("bert", "bart (encoder-decoder)")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return Sweep(tmp_path_factory.mktemp("sweep"))


@pytest.mark.parametrize("name", [*DOZEN, *REFUSED])
def test_an_architecture_is_computed_exactly_or_refused(sweep: Sweep, name: str) -> None:
    outcomes = sweep.try_all(named(name))
    assert [outcome for outcome in outcomes.values() if outcome.verdict == "wrong"] == []
    assert {outcome.verdict for outcome in outcomes.values()} == {"refused" if name in REFUSED else "exact"}
    assert row_of(outcomes) == read_table()[name]


@pytest.mark.parametrize(("name", "field"), [("mistral", "sliding_window"), ("gemma2", "attn_logit_softcapping")])
def test_the_comparison_sees_a_setting_that_is_ignored(sweep: Sweep, name: str, field: str) -> None:
    """What is computed without the setting is wrong in all stages."""
    model = make_model(named(name), len(sweep.tokenizer))
    student = sweep.save(model, f"{name} without {field}")
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, field: None}))
    outcomes = sweep.compare(model, student)
    assert {stage: outcome.verdict for stage, outcome in outcomes.items()} == dict.fromkeys(outcomes, "wrong")


def named(name: str) -> Architecture:
    return next(one for one in architectures() if one.name == name)
