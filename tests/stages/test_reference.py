"""docs/reference/ is what the code says, and the code says what each flag and variable means."""

import argparse
import re
import runpy
import shlex
from collections.abc import Iterator

import pytest
from support.programs import ROOT

from teacherlm.__main__ import COMMANDS
from teacherlm.chain.settings import ATLAS_SAVED, SAVED
from teacherlm.chain.site import ARGUMENTS, PARTITIONS
from teacherlm.chain.variables import GROUPS, NAMES, OF_OTHERS, VARIABLES, known_names

REFERENCE = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
FEW = 10
"""Number of flags that need no headings."""
INTERNAL = {"CHAIN_BENCHMARK", "DISABLE_MULTIPROC"}
"""Variables that programs of this project set for others of it, and that nobody else sets."""


def flags_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """The title of its group and the flag, of each flag that --help lists; of subcommands too."""
    for group in parser._action_groups:
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                for below in action.choices.values():
                    yield from flags_of(below)
            elif action.help != argparse.SUPPRESS and action.dest != "help":
                yield group.title, action


@pytest.mark.parametrize("page", ["commands.md", "variables.md"])
def test_the_pages_are_what_the_code_says(page: str) -> None:
    found = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert found == REFERENCE["pages"]()[page], "python docs/make_reference.py writes the pages anew"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_flag_says_what_it_means_and_each_program_has_an_example(name: str) -> None:
    found = REFERENCE["described"](name)
    if isinstance(found, str):
        assert re.match(r"usage: (?s:.*)\n\nexample:\n  \S", found)
        return
    flags = list(flags_of(found))
    assert [one.dest for _, one in flags if not (one.help or "").strip()] == []
    if len(flags) > FEW:
        assert {"options", "positional arguments"}.isdisjoint(title for title, _ in flags)
    assert found.description
    example = re.fullmatch(r"example:\s+(teacherlm .*)", found.epilog)
    assert example, found.epilog
    command, called, *words = shlex.split(example[1])
    assert (command, called) == ("teacherlm", name)
    found.parse_args(words)


def test_the_list_of_variables_has_those_that_are_read() -> None:
    read = {*SAVED, *ATLAS_SAVED, *ARGUMENTS, *PARTITIONS}
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        read |= set(
            re.findall(r'(?:environ(?:\.get|\.setdefault)?[\[(]|variables\.get\(|given\("--\w+", )"([A-Z_]+)"', text)
        )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    read |= set(re.findall(r"\$\$\{([A-Z_]+)[:}]", makefile)) | set(
        re.findall(r"\$\(if \$\(([A-Z]+)\),[a-z, ]", makefile)
    )
    for script in ROOT.glob("atlas/examples/**/*.*sh"):
        read |= set(re.findall(r"\$\{([A-Z_]+):[-?]", script.read_text(encoding="utf-8")))
    assert {"STUDENT", "TEST_WORKERS", "PEFT", "WHOLE", "READER_STEPS"} <= read
    assert sorted(name for name in read - known_names() - INTERNAL if not OF_OTHERS.fullmatch(name)) == []


def test_each_variable_stands_in_the_list_once_under_a_heading() -> None:
    assert len(NAMES) == len(VARIABLES)
    assert {one.group for one in VARIABLES} == set(GROUPS)
