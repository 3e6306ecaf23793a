"""A server that this command starts and ends: its log, when it is ready, and what is said when it ends too early."""

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import requests

from teacherlm.core import interrupts
from teacherlm.core.errors import UserError, reason
from teacherlm.core.terminal import cut, last_lines
from teacherlm.enhance.engines.server_session import make_session

HOST = "127.0.0.1"
KEYS = ("VLLM_API_KEY", "LLAMA_API_KEY")
"""The variables from which vLLM and llama.cpp take the key that they ask for. Other users of the machine can reach the
port, but they do not know the key."""
LOOK = 0.2
"""Seconds between two looks at a server that is not ready."""
READY_WITHIN = 3600
"""Maximum number of seconds until a server is ready. Large weights on a slow disk take long."""
SAY_EVERY = 60
"""Seconds between two messages that the server is not ready."""
END_WITHIN = 5
"""Seconds that a server gets to end by itself."""
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def end_with_parent() -> None:
    """Ask the system to end this process with its parent, also if the parent is killed. Runs in the new process."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class ServerProcess:
    """A server in a session of its own, so that Ctrl-C reaches it only through this command.

    Args:
        words: the command and its arguments.
        port: the port at which it will answer.
        log: the file for what it prints.

    Attributes:
        models: the names of its models, when it is ready. Some servers also list what else is on the disk.

    Raises:
        UserError: there is no such command.
    """

    def __init__(self, words: Sequence[str], port: int, log: Path):
        self.words, self.port, self.log = list(words), port, log
        self.models: list[str] = []
        self.key = secrets.token_urlsafe(32)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            try:
                self.process = subprocess.Popen(
                    self.words,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=os.environ | dict.fromkeys(KEYS, self.key),
                    start_new_session=True,
                    preexec_fn=end_with_parent,
                )
            except OSError as error:
                raise UserError(
                    f"the server {self.words[0]} cannot be started ({reason(error)}); correct `serve` in the YAML"
                ) from error

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}"

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def how_it_ended(self) -> str:
        """How the server ended, with the last line of its log, for a message."""
        code = self.process.poll() or 0
        how = f"was ended by {name_of(-code)}" if code < 0 else f"ended with status {code}"
        with contextlib.suppress(OSError):
            if line := next((line.strip() for line in reversed(last_lines(self.log)) if line.strip()), ""):
                how += f"; the last line of its log: {cut(line, 200)}"
        return f"{how} (all lines: {self.log})"

    def await_ready(self) -> bool:
        """Wait until the server answers. False if a signal asked to stop.

        Raises:
            UserError: it ended, or is not ready in time.
        """
        began = said = time.monotonic()
        with make_session(self.address, 1, self.key) as session:
            while not interrupts.is_asked():
                if self.has_ended():
                    raise UserError(f"the server {self.words[0]} was not ready when it {self.how_it_ended()}")
                if (names := models_of(session, self.address)) is not None:
                    self.models = names
                    return True
                now = time.monotonic()
                if now - began > READY_WITHIN:
                    raise UserError(f"the server {self.words[0]} was not ready in {READY_WITHIN} s: see {self.log}")
                if now - said > SAY_EVERY:
                    said = now
                    print(f"enhance: the server is not ready after {now - began:.0f} s: {self.log}", flush=True)
                time.sleep(LOOK)
        return False

    def end(self) -> None:
        """End the server and the processes that it started."""
        for number, seconds in ((signal.SIGTERM, END_WITHIN), (signal.SIGKILL, END_WITHIN)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)


def name_of(number: int) -> str:
    """The name of a signal. Most real-time signals have none."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def models_of(session: requests.Session, address: str) -> list[str] | None:
    """The names of a server's models, none if it does not say them, or None while it does not answer or loads its
    weights."""
    try:
        health = session.get(f"{address}/health", timeout=10)
        answer = session.get(f"{address}/v1/models", timeout=10)
    except requests.RequestException:
        return None
    if health.status_code >= 500 or not (health.ok or answer.ok):  # llama.cpp answers 503 while it loads
        return None
    try:
        return [str(entry["id"]) for entry in answer.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return []
