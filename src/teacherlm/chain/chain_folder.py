"""A chain's folder: whose it is, and the settings that its jobs read.

The settings are data, a JSON file that is never executed: {"benchmark", "directory", "variables": {NAME: value}}. Each
submission writes its own file, which only its user may read. So no other submission changes what a waiting job
reads. A job reads such a file only when its own user or root owns it.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.flags import Parser
from teacherlm.core.owners import WRITABLE_BY_GROUP_OR_OTHERS, make_own_folder, read_own
from teacherlm.core.programs import print_for_shell

PREFIX, SUFFIX = "settings-", ".json"
LARGEST = 2**20
"""Number of bytes of a settings file at most."""
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    own = commands.add_parser("own", help="make folders below RUNS; all of them have to be this user's")
    own.add_argument("runs", type=Path)
    own.add_argument("folders", type=Path, nargs="+")
    save_to = commands.add_parser(
        "save", help="write settings, NAME=VALUE ended by a NUL each on stdin; print the name"
    )
    save_to.add_argument("folder", type=Path)
    read_from = commands.add_parser("read", help="print settings: name NUL value NUL ..., after the last one `end`")
    read_from.add_argument("file", type=Path)
    args = parser.parse_args()
    if args.command == "own":
        for folder in args.folders:
            make_own_folder(folder.absolute(), args.runs.absolute())
    elif args.command == "save":
        words = os.fsdecode(sys.stdin.buffer.read()).split("\0")[:-1]
        print_for_shell(save(args.folder, dict(word.split("=", 1) for word in words)))
    else:
        sys.stdout.buffer.write(os.fsencode("".join(f"{word}\0" for pair in read(args.file) for word in pair)))


def save(folder: Path, settings: dict[str, str]) -> str:
    """Write a submission's settings into a new file of the chain's folder; returns its name.

    Earlier settings of this user are removed then: nothing of the chain is under way when it is submitted.

    Args:
        settings: `benchmark`, `directory`, and the variables.

    Raises:
        UserError: it cannot be written.
    """
    benchmark, directory = settings.pop("benchmark"), settings.pop("directory")
    text = json.dumps({"benchmark": benchmark, "directory": directory, "variables": settings}, indent=1)
    name = None
    try:
        # A new file with a random name, mode 0600: no link that somebody has put there is followed.
        number, name = tempfile.mkstemp(SUFFIX, PREFIX, folder)
        with open(number, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(number)
    except OSError as error:
        if name is not None:
            Path(name).unlink()
        raise UserError(f"{folder}: settings cannot be written; is the disk full? ({error.strerror})") from error
    for old in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if old != Path(name) and old.lstat().st_uid == os.geteuid():
                old.unlink()
    return Path(name).name


def read(file: Path) -> list[tuple[str, str]]:
    """The settings in a file: benchmark, directory, the variables, and ("end", "").

    Raises:
        UserError: the file is another user's, others may write it, or it is no settings file.
    """
    content = read_own(file, LARGEST, WRITABLE_BY_GROUP_OR_OTHERS)
    try:
        settings = json.loads(content)
        variables = settings["variables"]
        pairs = [("benchmark", settings["benchmark"]), ("directory", settings["directory"]), *variables.items()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file}: no settings of a chain; submit the chain again") from None
    for name, value in pairs:
        if name not in ("benchmark", "directory") and not VARIABLE.fullmatch(name):
            raise UserError(f"{file}: variables: {name!r}: a variable's name was expected")
        if not isinstance(value, str) or "\0" in value:
            raise UserError(f"{file}: {name}: a text was expected, found {value!r}")
    return [*pairs, ("end", "")]
