"""Write docs/reference/commands.md and variables.md from the code: every program with its flags, and every variable.

`make docs` runs it. tests/stages/test_reference.py fails when a page is not what this program writes now.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from unittest import mock

from teacherlm.__main__ import COMMANDS
from teacherlm.chain.variables import GROUPS, NAMES, VARIABLES
from teacherlm.core.files import whole_file
from teacherlm.core.places import ROOT
from teacherlm.runtime.launcher import SCRIPTS

PAGES = ROOT / "docs" / "reference"
LAUNCHERS = (
    "slurm/chain.sh",
    "slurm/download.sh",
    "enhance/enhance.sh",
    "finetune/finetune.sh",
    "evaluate/run_hf.sh",
    "evaluate/run_bloom.sh",
    "evaluate/run_opt.sh",
    "evaluate/run_bloom_mmlu.sh",
    "evaluate/run_opt_mmlu.sh",
    "atlas/examples/demo.sh",
    "atlas/examples/mmlu/mmlu-zeroshot.sh",
    "atlas/examples/mmlu/mmlu-5-shot.sh",
    "atlas/examples/mmlu/mmlu-5-shot-multi.sh",
    "atlas/examples/mmlu/mmlu-full.sh",
    "containers/build.sh",
    "containers/diff.sh",
    "containers/get_apptainer.sh",
    "containers/python.sh",
    "containers/run.sh",
    "containers/test_image.sh",
    "slurm/job.sh",
)
"""The shell scripts that people start, or see started."""
OTHER_SCRIPTS = {
    "prepare": "enhance/data_prepare.py",
    "sync-wandb": "finetune/sync_wandb.py",
    "prepare-mmlu": "atlas/preprocessing/prepare_mmlu.py",
    "download-model": "atlas/preprocessing/download_model.py",
    "download-index": "atlas/preprocessing/download_index.py",
    "download-corpus": "atlas/preprocessing/download_corpus.py",
    "atlas-scores": "atlas/evaluation_scripts/evaluate_mmlu_predictions.py",
}
KINDS = {int: "whole number", float: "number", Path: "path"}
WRITTEN = "<!-- docs/make_reference.py writes this page from the code; `make docs` runs it. -->\n\n"


class Found(Exception):
    """A program was about to print its help."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        with whole_file(PAGES / name) as file:
            file.write(text)


@functools.cache
def pages() -> dict[str, str]:
    return {"commands.md": commands_page(), "variables.md": variables_page()}


def commands_page() -> str:
    parts = [
        "# Commands\n\n" + WRITTEN,
        "Every program is a command of `teacherlm` (`.venv/bin/teacherlm` after `make install`). Where a script has "
        "the name that the papers' repositories gave it, both do the same. `COMMAND --help` prints what stands here. "
        "[Variables](variables.md) are set before a command, or after `make`.\n\n",
        "## Scripts\n",
        *(script_section(script) for script in LAUNCHERS),
        "\n## Programs\n\n| command | what it does |\n|---|---|\n",
        *(f"| [`{name}`](#teacherlm-{name}) | {cell(does)} |\n" for name, (_, does) in COMMANDS.items()),
        *(program_section(name) for name in COMMANDS),
    ]
    return "".join(parts)


def variables_page() -> str:
    parts = [
        "# Variables\n\n" + WRITTEN,
        "A variable stands before a command, `STUDENT=bloomz-7b1 bash slurm/chain.sh creak`, or after make, "
        "`make creak STUDENT=bloomz-7b1`. An empty one counts as not set. make refuses a variable that is not listed "
        "here, because a misspelt one would change nothing.\n",
    ]
    for group, readers in GROUPS.items():
        parts.append(f"\n## {group}\n\n{readers}\n\n| variable | meaning | default |\n|---|---|---|\n")
        parts += [
            f"| `{one.name}` | {cell(one.meaning)} | {cell(one.default)} |\n" for one in VARIABLES if one.group == group
        ]
    return "".join(parts)


def script_section(script: str) -> str:
    """The help of a shell script."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = ["bash", ROOT / script, "--help"]
    done = subprocess.run(command, env={**environment, "PYTHON": sys.executable}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} --help: {done.stderr}")
    return f"\n### {script}\n\n```text\n{done.stdout.rstrip()}\n```\n"


def program_section(name: str) -> str:
    """A command: what it does, its flags in their groups, an example."""
    title = f"\n### teacherlm {name}\n"
    script = SCRIPTS.get(name) or OTHER_SCRIPTS.get(name)
    also = f"\nThe same as `{script}`.\n" if script else ""
    found = described(name)
    if isinstance(found, str):
        return f"{title}{also}\n```text\n{found.rstrip()}\n```\n"
    description = (found.description or "").strip()
    text = title + (f"\n```text\n{description}\n```\n" if "\n\n" in description else f"\n{cell(description)}\n") + also
    text += "".join(parser_tables(found))
    example = re.sub(r"^examples?:\s*", "", found.epilog or "")
    return f"{text}\nExample:\n\n```\n{example}\n```\n"


@functools.cache
def described(name: str) -> argparse.ArgumentParser | str:
    """The parser of a command's flags, or what the command prints for --help where it has no parser."""

    def stop(parser: argparse.ArgumentParser, file: object = None) -> None:
        raise Found(parser)

    module = importlib.import_module(
        f"teacherlm.{COMMANDS[name][0]}"
    )  # libraries may set variables, which they need later
    printed = io.StringIO()
    variables = {one: value for one, value in os.environ.items() if one not in NAMES}
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", stop),
        mock.patch.object(sys, "argv", [f"teacherlm {name}", "--help"]),
        mock.patch.dict(os.environ, variables | {"COLUMNS": "120"}, clear=True),
        contextlib.redirect_stdout(printed),
    ):
        try:
            module.main()
        except Found as found:
            return found.parser
    return printed.getvalue()


def parser_tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table for each group of flags."""
    for group in parser._action_groups:
        shown = [
            one for one in group._group_actions if one.help != argparse.SUPPRESS and "--help" not in one.option_strings
        ]
        plain = [one for one in shown if not isinstance(one, argparse._SubParsersAction)]
        if plain:
            title = "" if group.title == "options" else f"**{group.title}**\n\n"
            yield f"\n{title}| flag | value | default | meaning |\n|---|---|---|---|\n"
            yield from (row(one, parser) for one in plain)
        for one in shown:
            if isinstance(one, argparse._SubParsersAction):
                for name, below in one.choices.items():
                    yield f"\n**{name}**\n"
                    yield from parser_tables(below)


def row(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings or [action.dest])
    meaning = (action.help or "").replace("%%", "%")
    return f"| {names} | {cell(values(action))} | {cell(default(action, parser))} | {cell(meaning)} |\n"


def values(action: argparse.Action) -> str:
    """What may follow the flag."""
    if action.nargs == 0:
        return ""
    if action.nargs == "?" and action.const is True:
        return "true or false"
    if isinstance(action.metavar, str) and action.metavar.startswith("{"):
        said = action.metavar.strip("{}").replace(",", ", ")
    elif action.choices is not None:
        said = ", ".join(str(getattr(one, "value", one)) for one in action.choices)
    else:
        said = KINDS.get(action.type, "text") if isinstance(action.type, type) else "text"
    return said + (" ..." if action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction) else "")


def default(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """What counts when the flag is not given; empty where the meaning says it, or nothing does."""
    value = action.default
    required = action.required and bool(action.option_strings)
    kind = getattr(parser, "kind", None)
    if kind is not None:
        field = next(one for one in dataclasses.fields(kind) if one.name == action.dest)
        value = field.default
        required = value is field.default_factory is dataclasses.MISSING
    if required:
        return "required"
    return shown(value)


def shown(value: Any) -> str:
    if value in (None, dataclasses.MISSING, argparse.SUPPRESS, (), [], ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Path):
        return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return str(value)


def cell(text: str) -> str:
    """A text in a cell of a table; what stands in backticks stays code."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    parts[::2] = [re.sub(r"([|<>*{}\[\]\\]|\b__|__\b|\b_|_\b)", r"\\\1", part) for part in parts[::2]]
    return "".join(part.replace("|", "\\|") if part.startswith("`") else part for part in parts)


if __name__ == "__main__":
    main()
