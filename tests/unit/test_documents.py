"""Links in the Markdown files lead somewhere, and pages that the code names are there."""

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.documents import anchors, blocks_to_run, is_as_said, links, markdown_files
from support.programs import ROOT

from teacherlm.chain.variables import complaint

FILES = markdown_files()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_a_heading(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    wrong = []
    for line, target in links(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        page = (file.parent / name).resolve() if name else file
        if not page.exists():
            wrong.append(f"line {line}: {target}: there is no such file")
        elif anchor and (page.suffix != ".md" or anchor not in anchors(page.read_text(encoding="utf-8"))):
            wrong.append(f"line {line}: {target}: there is no such heading")
    assert wrong == []


def test_the_marks_of_blocks_to_run_stand_before_blocks() -> None:
    blocks = [block for file in FILES for block in blocks_to_run(file.read_text(encoding="utf-8"))]
    assert any(block.output for block in blocks)
    assert {"", "cluster"} <= {block.where for block in blocks}


def test_pages_that_code_and_messages_name_are_there() -> None:
    command = ["git", "-C", ROOT, "grep", "--untracked", "-InoE", r"docs/[A-Za-z0-9_/-]+\.md", "--", ":!CHANGELOG.md"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    assert found
    assert [line for line in found if not (ROOT / line.rsplit(":", 1)[1]).is_file()] == []


def test_make_accepts_the_variables_of_the_commands_in_the_documents() -> None:
    commands = [
        line for file in FILES for line in re.findall(r"\bmake [a-z][^`\n#|]*", file.read_text(encoding="utf-8"))
    ]
    given = {name for command in commands for name in re.findall(r" ([A-Z][A-Z0-9_]*)=", command)}
    assert {"STUDENT", "RUNS", "CREAK_DATA"} <= given
    assert complaint(sorted(given - {"CAPITALS_DATA"})) is None  # of the benchmark that the tutorial writes


def test_headings_have_the_names_that_github_gives_them() -> None:
    page = (
        "# `make demo`: a run\n\n```\n# none\n```\n\n## A run's folder\n## Again\n## Again\n## CREAK_quality.jsonl #\n"
    )
    assert anchors(page) == {"make-demo-a-run", "a-runs-folder", "again", "again-1", "creak_qualityjsonl"}


def test_links_in_code_are_none() -> None:
    page = '[a](b.md) and `[c](d)`\n```\n[e](f)\n```\n![g](h.png "title") [i](<j k>)\n'
    assert links(page)[:2] == [(1, "b.md"), (5, "h.png")]


@pytest.mark.parametrize(
    ("printed", "said", "alike"),
    [
        ("one\ntwo\n", "one\ntwo\n", True),
        ("one\ntwo\n", "one\n", False),
        ("one  \n\n", "one\n", True),
        ("a\nb\nc\nd\n", "a\n...\nd\n", True),
        ("a\nd\n", "a\n...\nd\n", True),
        ("a\nb\n", "a\n...\nd\n", False),
        ("took 3.2 s\n", "took ... s\n", True),
        ("took 3.2 min\n", "took ... s\n", False),
        ("a.b\n", "axb\n", False),
        ("accuracy 0.5 (n=3)\n", "accuracy 0.5 (n=3)\n", True),
    ],
)
def test_an_output_is_compared_line_by_line(printed: str, said: str, alike: bool) -> None:
    assert is_as_said(printed, said) is alike


def test_blocks_are_found_with_their_output() -> None:
    page = "text\n\n<!-- tested -->\n```sh\necho a\n```\n\n<!-- output -->\n```\na\n```\n"
    page += "\n<!-- tested: slow -->\n\n```\nls\n```\n```\nno\n```\n<!-- tested: cluster -->\n```\nsinfo\n```\n"
    first, second, third = blocks_to_run(page)
    assert (first.line, first.commands, first.output, first.where) == (3, "echo a\n", "a\n", "")
    assert (second.commands, second.output, second.where) == ("ls\n", None, "slow")
    assert (third.commands, third.where) == ("sinfo\n", "cluster")
    for mistake in ("<!-- tested -->\n\ntext\n", "<!-- output -->\n```\na\n```\n"):
        with pytest.raises(ValueError, match=r"line 1: no "):
            blocks_to_run(mistake)
