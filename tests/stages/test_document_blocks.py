"""The shell blocks of the documents that are marked as tested do what the pages say (support/documents.py)."""

import os
from pathlib import Path

import pytest
from support.documents import Block, make_places, pages_with_blocks, run_blocks
from support.programs import ROOT, warm_python

PAGES = pages_with_blocks("")
SLOW = pages_with_blocks("", "slow")


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_do_what_it_says(page: str, tmp_path: Path) -> None:
    wrong = run_blocks(PAGES[page], *make_places(tmp_path, warm_python()))
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_the_slow_blocks_too(page: str, tmp_path: Path) -> None:
    wrong = run_blocks(SLOW[page], *make_places(tmp_path, warm_python()))
    assert not wrong, "\n".join(wrong)


def test_what_is_not_as_the_page_says_is_found(tmp_path: Path) -> None:
    said = Block(1, "echo one >/tmp/file; cat /tmp/file; echo /tmp/file\n", "one\n/tmp/file\n")
    other, failing = Block(2, "cat /tmp/file\n", "two\n"), Block(3, "false | true\n", None)
    found = run_blocks([said, other, failing, said], ROOT, tmp_path, dict(os.environ))
    assert [line.partition(":")[0] for line in found] == ["line 2", "line 3"]
    assert (tmp_path / "file").read_text() == "one\n"
