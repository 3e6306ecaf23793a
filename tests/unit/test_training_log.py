"""The log of a resumed training: a line with a wrong shape is named."""

from pathlib import Path

import pytest

from teacherlm.atlas.train import Log
from teacherlm.core.errors import UserError


@pytest.mark.parametrize("line", ['{"a": 1}', '{"step": "x"}', '{"step": 1, "skipped_steps": [1]}'])
def test_atlas_names_a_line_that_is_none_of_its_log(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "reader_loss": 0.5}\n' + line + "\n")
    with pytest.raises(UserError, match=r"log.jsonl, line 2: this is not a line of a training log: "):
        Log(path, 5)


def test_atlas_drops_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "reader_loss": 0.5}\n{"step": 2}\n{"ste')
    Log(path, 1)
    assert path.read_text() == '{"step": 1, "reader_loss": 0.5}\n'
