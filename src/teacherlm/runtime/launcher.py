"""Start programs and wait for them: one process, one per GPU of this machine, or processes on a Slurm job's nodes.

This module needs only the standard library. When CONTAINER is set, the programs run in the image, but this module runs
in the host's Python, which has no packages.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from teacherlm.core.errors import UserError
from teacherlm.core.interrupts import REQUEUE
from teacherlm.core.places import ROOT

SCRIPTS = {
    "prepare": "enhance/data_prepare.py",
    "enhance": "enhance/enhance.py",
    "merge": "enhance/merge.py",
    "finetune": "finetune/finetune.py",
    "evaluate": "evaluate/main.py",
    "atlas-train": "atlas/train.py",
    "atlas-evaluate": "atlas/evaluate.py",
    "atlas-scores": "atlas/evaluation_scripts/evaluate_mmlu_predictions.py",
    "prepare-mmlu": "atlas/preprocessing/prepare_mmlu.py",
}
"""Maps each command to its script in a checkout."""
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
POLL_SECONDS = 0.05
HAND_ON = {signal.SIGUSR1: signal.SIGUSR1, signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGTERM}
"""Maps each signal that this process receives to the signal that it sends on. Ctrl-C becomes SIGTERM, on which a
process stops at a point from which it can resume."""
RANK_OF_SRUN = 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"'
"""The bash command in each process that srun starts. The program and its arguments follow it."""


def require_number(name: str, value: str, least: int) -> int:
    """A whole number from the environment or a command line, without a sign and without leading zeros.

    Raises:
        UserError: the value is not such a number, or is less than `least`.
    """
    if not NUMBER.fullmatch(value) or int(value) < least:
        shown = re.sub(r"[\x00-\x1f\x7f]", "?", value)
        raise UserError(f"{name}={shown}: a whole number from {least} to 999999999 was expected")
    return int(value)


def stage_python() -> str:
    """The Python that runs the stages: the image's if CONTAINER is set, else PYTHON if set, else this Python."""
    if os.environ.get("CONTAINER"):
        return str(ROOT / "containers" / "python.sh")
    return os.environ.get("PYTHON") or sys.executable


def program(name: str) -> list[str]:
    """The command line of a stage: Python with the script of a checkout, or with the package's command."""
    script = ROOT / SCRIPTS.get(name, "-")
    if name in SCRIPTS and script.is_file():
        return [stage_python(), str(script)]
    return [stage_python(), "-P", "-m", "teacherlm", name]


def own_program(name: str, called: str) -> list[str]:
    """The command line of a program of this project that needs no packages and runs outside of an image.

    Args:
        called: the name with which the program's messages begin.
    """
    python = sys.executable if os.environ.get("CONTAINER") else stage_python()
    return [python, "-P", "-m", "teacherlm", "--called", called, name]


def processes_here() -> int:
    """Number of processes per machine: NUM_GPUS, or the number of visible GPUs; 0 means one process on the CPU.

    Raises:
        UserError: NUM_GPUS is not a number.
    """
    number = os.environ.get("NUM_GPUS")
    return require_number("NUM_GPUS", number, 0) if number else seen_gpus()


def seen_gpus() -> int:
    """Number of GPUs that torch sees, counted in a separate process, because this one may have no torch."""
    if shutil.which("nvidia-smi") is None:
        return 0
    words = [stage_python(), "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    counted = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if counted.returncode:
        raise UserError("counting the GPUs of this machine failed (see the lines above); set NUM_GPUS to their number")
    return require_number("NUM_GPUS", counted.stdout.strip(), 0)


@dataclass(frozen=True)
class Command:
    """A command to start.

    Attributes:
        words: the program and its arguments.
        variables: environment variables of the process, in addition to those of this process.
        files: open file descriptors that the process inherits, a lock for example.
    """

    words: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[int] = ()


def launch(words: Sequence[str], processes: int) -> int:
    """Run a program to its end: in one process, in several that meet through torch.distributed, or on a job's nodes.

    Args:
        words: the command line of one process.
        processes: number of processes per machine; see `processes_here`.

    Returns:
        The first exit status that is not 0, or 0.

    Raises:
        UserError: SLURM_NNODES is not a number.
    """
    nodes = require_number("SLURM_NNODES", os.environ.get("SLURM_NNODES") or "1", 1)
    if nodes > 1:
        return run_side_by_side([on_nodes(words, nodes, max(processes, 1))])
    if processes <= 1:
        return run_side_by_side([Command(words)])
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": meeting_port("127.0.0.1")}
    ranks = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return run_side_by_side([Command(words, rank) for rank in ranks])


def on_nodes(words: Sequence[str], nodes: int, processes: int) -> Command:
    """The srun command that starts `processes` processes on each node. Each reads its rank from Slurm's variables."""
    listed = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    first = subprocess.run(listed, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]
    size = str(nodes * processes)
    variables = {"MASTER_ADDR": first, "MASTER_PORT": meeting_port(""), "WORLD_SIZE": size}
    srun = ["srun", f"--ntasks={size}", f"--ntasks-per-node={processes}", "--kill-on-bad-exit=1"]
    return Command([*srun, "bash", "-c", RANK_OF_SRUN, "_", *words], variables)


def meeting_port(address: str) -> str:
    """MASTER_PORT, or a free port of this machine that the system chooses."""
    if port := os.environ.get("MASTER_PORT"):
        return port
    return str(free_port(address))


def free_port(address: str) -> int:
    """A port of this machine that no program listens at. The system chooses it."""
    with socket.create_server((address, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def run_side_by_side(
    commands: Sequence[Command],
    places: Sequence[Mapping[str, str]] | None = None,
    *,
    keep_going: bool = False,
    in_front: bool = False,
    more_follows: bool = False,
) -> int:
    """Run commands side by side to their ends, and forward signals to them.

    When a command fails, the others are terminated. When a command reports that it was interrupted, the others end by
    themselves, because they received the signal too. In both cases no further command is started.

    Args:
        places: environment variables for each place; at most one process runs in a place at a time. None means that all
            commands run at once.
        keep_going: whether the others go on when a command fails.
        in_front: for a single command: Ctrl-C in a terminal reaches the command directly, as in a shell, and the
            command decides what to do. Otherwise Ctrl-C asks all commands to stop where they can resume later.
        more_follows: whether the caller has other work afterwards, which must not begin after a signal.

    Returns:
        The first exit status that is not 0, or 0. It is 128 plus the signal's number if a signal ended a process.
    """
    waiting, pool = deque(commands), Pool(keep_going, in_front)
    free = [{}] * len(commands) if places is None else list(places)
    with pool:
        while True:
            while waiting and free and not pool.stopped and (keep_going or not pool.status):
                pool.start(waiting.popleft(), free.pop(0))
            if not pool.running:
                return pool.status or (REQUEUE if waiting or (pool.stopped and more_follows) else 0)
            time.sleep(POLL_SECONDS)
            free += pool.reap()


class Pool:
    """Processes that run side by side. As a context, it forwards signals to them.

    Attributes:
        status: the first exit status that is not 0.
        stopped: whether a signal has asked this process to stop.
    """

    def __init__(self, keep_going: bool, in_front: bool) -> None:
        self.keep_going, self.in_front = keep_going, in_front
        self.running: dict[subprocess.Popen[bytes], Mapping[str, str]] = {}
        self.status = 0
        self.stopped = False

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self.hand_on) for number in HAND_ON}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if not (self.in_front and number == signal.SIGINT):  # the terminal has sent it to the process as well
            self.send(HAND_ON[signal.Signals(number)])

    def send(self, number: signal.Signals) -> None:
        for process in self.running:
            process.send_signal(number)

    def start(self, command: Command, place: Mapping[str, str]) -> None:
        sys.stdout.flush()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HAND_ON)  # until the process is in self.running
        to_terminal = self.in_front and self.before[signal.SIGINT] != signal.SIG_IGN

        def begin() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL if to_terminal else signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        try:
            environment = {**os.environ, **command.variables, **place}
            started = subprocess.Popen(command.words, env=environment, pass_fds=command.files, preexec_fn=begin)
            self.running[started] = place
        except OSError as error:
            raise UserError(f"{command.words[0]}: this program cannot be started ({error.strerror})") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def reap(self) -> list[Mapping[str, str]]:
        """Remove the processes that have ended, and return their places."""
        free = []
        for process in [one for one in self.running if one.poll() is not None]:
            free.append(self.running.pop(process))
            status = process.returncode if process.returncode >= 0 else 128 - process.returncode
            if status and not self.status:
                self.status = status
                if status != REQUEUE and not self.keep_going:
                    self.send(signal.SIGTERM)
        return free
