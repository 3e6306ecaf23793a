"""A command in a process of its own with a bound on its processor time and its memory: for inputs meant to hurt.

Processor time does not grow with the load of the machine, and the bounds are far above what the command needs, so that
only another order of growth breaks them.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress

MIB = 2**20


def bounded(words: Sequence[object], seconds: int = 60, mib: int = 1024) -> subprocess.CompletedProcess:
    """Run Python with these words; it must end by itself within `seconds` of processor time and `mib` of memory."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (4 * mib * MIB, 4 * mib * MIB))  # it is to fail, not the machine

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        command = [sys.executable, *map(str, words)]
        process = subprocess.Popen(command, stdout=out, stderr=err, preexec_fn=limit)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())
    ended = done.returncode
    with suppress(ValueError):
        ended = signal.Signals(-done.returncode).name
    assert done.returncode >= 0, f"ended by {ended} after {used.ru_utime:.0f} s: {done.stderr[-2000:]}"
    assert used.ru_maxrss * 1024 < mib * MIB, f"{used.ru_maxrss // 1024} MiB"
    return done
