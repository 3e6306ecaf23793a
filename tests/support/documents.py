"""The Markdown files of the project: their headings, their links, and the shell blocks that the tests run.

A block is run when the comment `<!-- tested -->` stands before it. `make prove` alone runs the blocks after
`<!-- tested: slow -->`, and `make test-cluster` those after `<!-- tested: cluster -->`, on the Slurm of the tests.
`<!-- output -->` before a block says that it is what the commands above print, stdout and stderr in their order.
A line `...` in it stands for any lines, and `...` within a line for any text. The tested blocks of a page are run one
after the other, in a copy of the checkout. `/tmp/` in them is a folder of the test.
"""

import os
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from support.programs import ROOT
from teacherlm.chain.variables import NAMES

FENCE = re.compile(r"^(?P<mark>```+|~~~+).*?\n(?P<text>.*?)^(?P=mark)[ \t]*$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^<!-- (?:tested(?:: (?P<where>slow|cluster))?|(?P<output>output)) -->\n+", re.MULTILINE)
LINK = re.compile(r"(?<!\\)\]\(\s*<?([^)\s>]+)>?[^)]*\)")


@dataclass(frozen=True)
class Block:
    """Commands of a page that are run, and what they print, where the page says it.

    Attributes:
        where: "" if `make test` runs it, otherwise "slow" or "cluster".
    """

    line: int
    commands: str
    output: str | None
    where: str = ""


def markdown_files() -> list[Path]:
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def blocks_to_run(text: str) -> list[Block]:
    """The blocks of a page that are run.

    Raises:
        ValueError: no block follows a mark, or an output that belongs to no commands.
    """
    blocks: list[Block] = []
    for mark in MARK.finditer(text):
        line = text.count("\n", 0, mark.start()) + 1
        fence = FENCE.match(text, mark.end())
        if fence is None:
            raise ValueError(f"line {line}: no block follows this mark")
        if not mark["output"]:
            blocks.append(Block(line, fence["text"], None, mark["where"] or ""))
        elif not blocks or blocks[-1].output is not None:
            raise ValueError(f"line {line}: no commands stand before this output")
        else:
            blocks[-1] = replace(blocks[-1], output=fence["text"])
    return blocks


def pages_with_blocks(*where: str) -> dict[str, list[Block]]:
    """Page -> its blocks that are run at these places, for each page that has a block for the last of them."""
    found = {}
    for file in markdown_files():
        blocks = blocks_to_run(file.read_text(encoding="utf-8"))
        if any(block.where == where[-1] for block in blocks):
            found[str(file.relative_to(ROOT))] = [block for block in blocks if block.where in where]
    return found


def make_places(folder: Path, python: str) -> tuple[Path, Path, dict[str, str]]:
    """A copy of the checkout, the folder that stands for /tmp, and an environment without this project's variables."""
    checkout, scratch = folder / "checkout", folder / "scratch"
    checkout.mkdir()
    scratch.mkdir()
    copy_checkout(checkout, python)
    kept = {"OMP_NUM_THREADS", "TEACHERLM_CACHE", "HF_HOME"}
    removed = (NAMES - kept) | {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH"}
    return checkout, scratch, {name: value for name, value in os.environ.items() if name not in removed}


def run_blocks(blocks: list[Block], checkout: Path, scratch: Path, environment: dict[str, str]) -> list[str]:
    """Run blocks one after the other.

    Args:
        scratch: stands in the place of /tmp.

    Returns:
        What did not come out as the page says, a text for each block; after a failure nothing more is run.
    """
    wrong = []
    for block in blocks:
        commands = block.commands.replace("/tmp/", f"{scratch}/")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        printed = done.stdout.replace(f"{scratch}/", "/tmp/").replace(str(checkout), "")
        if done.returncode:
            return [*wrong, f"line {block.line}: it ended with {done.returncode} and printed:\n{printed}"]
        if block.output is not None and not is_as_said(printed, block.output):
            wrong.append(f"line {block.line}: it printed\n{printed}\nand the page says\n{block.output}")
    return wrong


def is_as_said(printed: str, said: str) -> bool:
    """Whether a command printed what a page says that it prints."""
    pattern = ""
    for line in said.rstrip("\n").split("\n"):
        if line.strip() == "...":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ \t]*\n"
    return re.fullmatch(pattern, printed.rstrip("\n") + "\n") is not None


def copy_checkout(folder: Path, python: str) -> None:
    """A copy of the project's files, with a .venv whose programs are started with another Python."""
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = os.fsdecode(subprocess.run(command, capture_output=True, check=True).stdout).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
            (folder / name).chmod((ROOT / name).stat().st_mode & 0o777)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, words in (("python", ""), ("teacherlm", " -P -m teacherlm")):
        (programs / name).write_text(f'#!/bin/sh\nexec {python}{words} "$@"\n')
        (programs / name).chmod(0o755)
    # The record is newer than all locks, so make takes this .venv for complete.
    (folder / ".venv" / "installed.txt").write_text(f"# checkout: {folder.resolve()}\n")


def anchors(text: str) -> set[str]:
    """The names of a page's headings in links, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#{1,6}[ \t]+(.*?)[ \t#]*$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        names.add(f"{name}-{count}" if count else name)
    return names


def links(text: str) -> list[tuple[int, str]]:
    """(line, target) of each link and image; what stands in code is none."""
    blank = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    blank = re.sub(r"`[^`\n]*`", "", blank)
    return [(blank.count("\n", 0, found.start()) + 1, found[1]) for found in LINK.finditer(blank)]
