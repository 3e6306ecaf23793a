"""The dozen most used architectures through enhance, finetune and evaluate: as docs/models.md says, and exact."""

import pytest
from sweep import Sweep, read_table, row_of
from tiny_architectures import architectures

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
    architecture = next(one for one in architectures() if one.name == name)
    outcomes = sweep.try_all(architecture)
    assert [outcome for outcome in outcomes.values() if outcome.verdict == "wrong"] == []
    assert {outcome.verdict for outcome in outcomes.values()} == {"refused" if name in REFUSED else "exact"}
    assert row_of(outcomes) == read_table()[name]
