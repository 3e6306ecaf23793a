"""Slurm's programs as they are asked: their lines, or one line that says why there are none."""

import subprocess

from teacherlm.core.errors import UserError

WAIT_SECONDS = 60
"""They are given so long to answer."""


class NoAnswer(Exception):
    """Slurm's program is not there, fails, or does not answer in time; the text is the reason."""


class NoProgram(NoAnswer):
    """Slurm's program is not on this machine."""


def lines_of(*command: str) -> list[str]:
    """The lines that one of Slurm's programs prints.

    Raises:
        NoAnswer: there are none.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=WAIT_SECONDS)
    except FileNotFoundError:
        raise NoProgram(f"there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} waited for a minute") from None
    if done.returncode:
        raise NoAnswer((done.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1])  # the last line has it
    return done.stdout.splitlines()


def ask(*command: str) -> list[str]:
    """The lines that one of Slurm's programs prints, for a program that can do nothing without them.

    Raises:
        UserError: there are none.
    """
    try:
        return lines_of(*command)
    except NoProgram:
        raise UserError(f"{command[0]}: no such command; is this a login node of the cluster?") from None
    except NoAnswer as error:
        raise UserError(f"Slurm does not answer ({error}); ask again later") from error
