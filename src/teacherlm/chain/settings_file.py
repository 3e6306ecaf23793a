"""The settings that a chain's jobs read: a file in the chain's folder for each submission.

The settings are data, a JSON file that is never executed: {"benchmark", "directory", "variables": {NAME: value}}. Each
submission writes a new file, which only its user may read, so no other submission changes what a waiting job reads. A
job reads such a file only if the job's user or root owns it.
"""

import contextlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.owners import WRITABLE_BY_GROUP_OR_OTHERS, read_own

PREFIX, SUFFIX = "settings-", ".json"
LARGEST = 2**20
"""Maximum number of bytes of a settings file."""
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


@dataclass(frozen=True)
class Submission:
    """The settings that the jobs of a submission read."""

    benchmark: str
    directory: str
    variables: dict[str, str]


def save(folder: Path, submission: Submission) -> str:
    """Write a submission's settings into a new file of the chain's folder; return the file's name.

    Earlier settings of this user are then removed. No job reads them: a chain that is under way is not submitted.

    Raises:
        UserError: the file cannot be written.
    """
    content = {"benchmark": submission.benchmark, "directory": submission.directory, "variables": submission.variables}
    text = json.dumps(content, indent=1)
    name = None
    try:
        # The file is new, with a random name and mode 0600, so no link that somebody has put there is followed.
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


def read(file: Path) -> Submission:
    """The settings in a file.

    Raises:
        UserError: the file belongs to another user, others may write it, or it is not a settings file.
    """
    content = read_own(file, LARGEST, WRITABLE_BY_GROUP_OR_OTHERS)
    try:
        settings = json.loads(content)
        found = Submission(settings["benchmark"], settings["directory"], dict(settings["variables"].items()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{file}: these are not settings of a chain; submit the chain again") from None
    for name in found.variables:
        if not VARIABLE.fullmatch(name):
            raise UserError(f"{file}: variables: {name!r}: a variable's name was expected")
    for name, value in {**found.variables, "benchmark": found.benchmark, "directory": found.directory}.items():
        if not isinstance(value, str) or "\0" in value:
            raise UserError(f"{file}: {name}: a text was expected, found {value!r}")
    return found
