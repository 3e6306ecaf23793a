"""The shell blocks of the documents that are marked as tested do what the pages say (support/documents.py)."""

import os
from pathlib import Path

import pytest
from support.documents import Block, blocks_to_run, copy_checkout, markdown_files, run_blocks
from support.programs import ROOT, warm_python

from teacherlm.chain.variables import NAMES

PAGES = {
    str(file.relative_to(ROOT)): blocks
    for file in markdown_files()
    if (blocks := blocks_to_run(file.read_text(encoding="utf-8")))
}
SLOW = [name for name, blocks in PAGES.items() if any(block.is_slow for block in blocks)]


def run_page(blocks: list[Block], place: Path, python: str) -> list[str]:
    checkout, scratch = place / "checkout", place / "scratch"
    checkout.mkdir()
    scratch.mkdir()
    copy_checkout(checkout, python)
    removed = (
        *NAMES - {"OMP_NUM_THREADS", "TEACHERLM_CACHE", "HF_HOME"},
        "MAKEFLAGS",
        "MAKELEVEL",
        "MFLAGS",
        "PYTHONPATH",
    )
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    return run_blocks(blocks, checkout, scratch, environment)


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_do_what_it_says(page: str, tmp_path: Path) -> None:
    assert run_page([block for block in PAGES[page] if not block.is_slow], tmp_path, warm_python()) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_the_slow_blocks_too(page: str, tmp_path: Path) -> None:
    assert run_page(PAGES[page], tmp_path, warm_python()) == []


def test_what_is_not_as_the_page_says_is_found(tmp_path: Path) -> None:
    said = Block(1, "echo one >/tmp/file; cat /tmp/file; echo /tmp/file\n", "one\n/tmp/file\n", False)
    other, failing = Block(2, "cat /tmp/file\n", "two\n", False), Block(3, "false | true\n", None, False)
    found = run_blocks([said, other, failing, said], ROOT, tmp_path, dict(os.environ))
    assert [line.partition(":")[0] for line in found] == ["line 2", "line 3"]
    assert (tmp_path / "file").read_text() == "one\n"
