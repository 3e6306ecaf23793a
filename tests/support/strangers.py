"""Another user of the machine, `nobody`, with real files and processes in addition to root's."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NOBODY = 65534
# It may read everything, as the Python of a root who runs the tests may lie in root's own folders; and write its own.
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
AS_NOBODY += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def require_nobody() -> None:
    if os.geteuid():
        pytest.skip("only root may run processes of another user")
    if not shutil.which("setpriv") or subprocess.run([*AS_NOBODY, "true"], capture_output=True).returncode:
        pytest.skip("setpriv cannot run a process of another user here")


def give_to_nobody(path: Path) -> Path:
    """Make `nobody` the owner of a file, or of a folder with everything in it."""
    for part in (path, *path.rglob("*")):
        os.chown(part, NOBODY, NOBODY, follow_symlinks=False)
    return path
