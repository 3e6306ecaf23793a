"""Run a command in a separate process with limits on its processor time and memory, for hostile inputs.

Processor time does not depend on the load of the machine. The limits are far above what the command needs, so that only
another order of growth exceeds them.
"""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MIB = 2**20
LAUNCHER = """
import json, os, resource, sys
seconds, memory = map(int, sys.argv[1:3])
child = os.fork()
if not child:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))  # it is to fail, not the machine
    os.execv(sys.argv[4], sys.argv[4:])
_, status, used = os.wait4(child, 0)
with open(sys.argv[3], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), used.ru_utime, used.ru_maxrss // 1024], file)
"""
"""A launcher that needs little memory. Linux counts the memory of the starting process in the peak of a program."""


def bounded(words: Sequence[object], seconds: int = 60, mib: int = 1024) -> subprocess.CompletedProcess:
    """Run Python with these words; it must end by itself within `seconds` of processor time and `mib` of memory."""

    with (
        tempfile.TemporaryDirectory() as place,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        used = Path(place) / "used.json"
        command = [sys.executable, *map(str, words)]
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(seconds), str(4 * mib * MIB), str(used)]
        subprocess.run([*launcher, *command], stdout=out, stderr=err, check=True)
        code, spent, peak = json.loads(used.read_text())
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(command, code, out.read(), err.read())
    ended = code
    with suppress(ValueError):
        ended = signal.Signals(-code).name
    assert code >= 0, f"ended by {ended} after {spent:.0f} s: {done.stderr[-2000:]}"
    assert peak < mib, f"{peak} MiB"
    return done
