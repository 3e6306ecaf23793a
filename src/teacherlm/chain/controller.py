"""Calls of Slurm's programs: the lines that they print, or one line that says why there are none."""

import contextlib
import re
import subprocess
from collections.abc import Iterator

from teacherlm.core.errors import UserError

WAIT_SECONDS = 60
"""Seconds that a program may take to answer."""
FOR_EVER = 2**40
"""Seconds that stand for no limit: more than any job requests."""
CANNOT_RUN = re.compile(r"Partition(Config|NodeLimit)|BadConstraints|(Assoc|QOS).*Max.*Per(Job|Node).*")
"""Slurm's reasons with which a job waits for ever."""


class NoAnswer(Exception):
    """Slurm's program is missing, fails, or does not answer in time. The text is the reason."""


class NoProgram(NoAnswer):
    """Slurm's program is missing on this machine."""


def lines_of(*command: str) -> list[str]:
    """The lines that one of Slurm's programs prints.

    Raises:
        NoAnswer: the program is missing, fails, or does not answer in time.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=WAIT_SECONDS)
    except FileNotFoundError:
        raise NoProgram(f"there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} gave no answer for a minute") from None
    if done.returncode:
        raise NoAnswer((done.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1])  # the reason comes last
    return done.stdout.splitlines()


def ask(*command: str) -> list[str]:
    """The lines that one of Slurm's programs prints, or a UserError if there are none.

    Raises:
        UserError: see `NoAnswer`.
    """
    with as_user_errors(command[0]):
        return lines_of(*command)


@contextlib.contextmanager
def as_user_errors(program: str) -> Iterator[None]:
    """Turn NoAnswer into a UserError.

    Raises:
        UserError: see `NoAnswer`.
    """
    try:
        yield
    except NoProgram:
        raise UserError(f"{program}: no such command; is this a login node of the cluster?") from None
    except NoAnswer as error:
        raise UserError(
            f"Slurm does not answer ({error}); try again later, or on a login node of the cluster (SLURM_CONF names "
            "its configuration)"
        ) from error


def never_runs(job: str) -> str | None:
    """The reason why a job will wait for ever, or None if it will not.

    Raises:
        NoAnswer, ValueError, IndexError: Slurm no longer knows the job.
    """
    line = lines_of("squeue", "--noheader", f"--jobs={job}", "--format=%P %l %r")[0]
    partition, limit, reason = line.split(maxsplit=2)
    longest = map(seconds_of, lines_of("sinfo", "--noheader", f"--partition={partition}", "--format=%l"))
    if seconds_of(limit) > max(longest):
        return f"it requests more time ({limit}) than its partition {partition} allows"
    return f"Slurm says {reason}" if CANNOT_RUN.fullmatch(reason) else None


def seconds_of(time: str) -> int:
    """The seconds in Slurm's `[days-][hours:]minutes:seconds`. `infinite` and UNLIMITED give FOR_EVER."""
    if not re.fullmatch(r"([0-9]+-)?[0-9]+(:[0-9]+)*", time):
        return FOR_EVER
    days, _, clock = time.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part)
    return int(days or 0) * 86400 + seconds
