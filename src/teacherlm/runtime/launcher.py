"""Start programs (one process, one for each GPU of this machine, or those of a Slurm job's nodes) and wait for them.

Only the standard library is needed here. With CONTAINER set the programs run in the image, and this module is run by
the host's own Python, which has no packages.
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
"""The scripts of a checkout, by the names of their commands."""
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
POLL_SECONDS = 0.05
HAND_ON = {signal.SIGUSR1: signal.SIGUSR1, signal.SIGTERM: signal.SIGTERM, signal.SIGINT: signal.SIGTERM}
"""Which signal the processes get for each that this one gets. Ctrl-C asks them to stop where they can go on later."""
RANK_OF_SRUN = 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"'
"""What bash does in each process that srun starts; the words of the program follow."""


def require_number(name: str, value: str, least: int) -> int:
    """A whole number from the environment or a command line, without a sign and without leading zeros.

    Raises:
        UserError: it is none, or too small.
    """
    if not NUMBER.fullmatch(value) or int(value) < least:
        shown = re.sub(r"[\x00-\x1f\x7f]", "?", value)
        raise UserError(f"{name}={shown}: a whole number from {least} to 999999999 was expected")
    return int(value)


def stage_python() -> str:
    """The python that runs the stages: the image's where CONTAINER names one, PYTHON, or this one."""
    if os.environ.get("CONTAINER"):
        return str(ROOT / "containers" / "python.sh")
    return os.environ.get("PYTHON") or sys.executable


def program(name: str) -> list[str]:
    """The words that start a program in the stages' python: the script of a checkout, or the package's command."""
    script = ROOT / SCRIPTS.get(name, "-")
    if name in SCRIPTS and script.is_file():
        return [stage_python(), str(script)]
    return [stage_python(), "-P", "-m", "teacherlm", name]


def own_program(name: str, called: str) -> list[str]:
    """The words that start a program of this package that needs no packages: outside of an image, as this one.

    Args:
        called: the name that its messages begin with.
    """
    python = sys.executable if os.environ.get("CONTAINER") else stage_python()
    return [python, "-P", "-m", "teacherlm", "--called", called, name]


def processes_here() -> int:
    """How many processes a machine gets: NUM_GPUS, or one for each GPU that is seen; 0 is one on the CPU.

    Raises:
        UserError: NUM_GPUS is no number.
    """
    asked = os.environ.get("NUM_GPUS")
    return require_number("NUM_GPUS", asked, 0) if asked else seen_gpus()


def seen_gpus() -> int:
    """Number of GPUs that torch sees, which is asked in a process of its own: this one may have no torch."""
    if shutil.which("nvidia-smi") is None:
        return 0
    words = [stage_python(), "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    counted = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if counted.returncode:
        raise UserError("the GPUs of this machine cannot be counted, as it says above; NUM_GPUS=... says how many")
    return require_number("NUM_GPUS", counted.stdout.strip(), 0)


@dataclass(frozen=True)
class Command:
    """Words to start, and the variables that its process has beside those of this one.

    Attributes:
        files: open descriptors that the process inherits, a lock for example.
    """

    words: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[int] = ()


def launch(words: Sequence[str], processes: int) -> int:
    """Run a program to its end: in one process, in several that meet through torch.distributed, or on a job's nodes.

    Args:
        words: they start one process of it.
        processes: on each machine; see `processes_here`.

    Returns:
        The first bad exit status, or 0.

    Raises:
        UserError: SLURM_NNODES is no number.
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
    """srun starts a process a GPU on each node; each finds its rank in Slurm's variables."""
    listed = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    first = subprocess.run(listed, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[0]
    size = str(nodes * processes)
    variables = {"MASTER_ADDR": first, "MASTER_PORT": meeting_port(""), "WORLD_SIZE": size}
    srun = ["srun", f"--ntasks={size}", f"--ntasks-per-node={processes}", "--kill-on-bad-exit=1"]
    return Command([*srun, "bash", "-c", RANK_OF_SRUN, "_", *words], variables)


def meeting_port(address: str) -> str:
    """MASTER_PORT, or a port that is free on this machine; which one, the system draws."""
    if port := os.environ.get("MASTER_PORT"):
        return port
    with socket.create_server((address, 0)) as listener:
        return str(listener.getsockname()[1])


def run_side_by_side(
    commands: Sequence[Command],
    places: Sequence[Mapping[str, str]] | None = None,
    *,
    keep_going: bool = False,
    in_front: bool = False,
    more_follows: bool = False,
) -> int:
    """Run commands to their ends side by side, and hand signals on to them.

    When one fails, the others are ended. When one says that it was interrupted, the others end by themselves, as they
    have had the signal too. After either no further command is started.

    Args:
        places: there is room for so many processes at a time; each gets the variables of its place. None: for all.
        keep_going: one that fails does not end the others.
        in_front: of one command: a terminal's Ctrl-C goes to it as in a shell, and it decides what that means.
            Otherwise Ctrl-C asks all of them to stop where they can go on later.
        more_follows: the caller goes on with other work afterwards, which must not begin once a signal has come.

    Returns:
        The first bad exit status, or 0; 128 and the number of the signal that ended a process.
    """
    waiting, pool = deque(commands), Pool(keep_going, in_front)
    free = [{}] * len(commands) if places is None else list(places)
    with pool:
        while True:
            while waiting and free and not pool.asked and (keep_going or not pool.status):
                pool.start(waiting.popleft(), free.pop(0))
            if not pool.running:
                return pool.status or (REQUEUE if waiting or (pool.asked and more_follows) else 0)
            time.sleep(POLL_SECONDS)
            free += pool.reap()


class Pool:
    """Processes that run side by side. While it is entered, signals go to them.

    Attributes:
        status: the first bad exit status.
        asked: whether a signal has asked this process to stop.
    """

    def __init__(self, keep_going: bool, in_front: bool) -> None:
        self.keep_going, self.in_front = keep_going, in_front
        self.running: dict[subprocess.Popen[bytes], Mapping[str, str]] = {}
        self.status = 0
        self.asked = False

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self.hand_on) for number in HAND_ON}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not (self.in_front and number == signal.SIGINT):  # the terminal has sent it to the process as well
            self.send(HAND_ON[signal.Signals(number)])

    def send(self, number: signal.Signals) -> None:
        for process in self.running:
            process.send_signal(number)

    def start(self, command: Command, place: Mapping[str, str]) -> None:
        sys.stdout.flush()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HAND_ON)  # until the process is known
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
        """Take note of the processes that have ended; returns their places."""
        free = []
        for process in [one for one in self.running if one.poll() is not None]:
            free.append(self.running.pop(process))
            status = process.returncode if process.returncode >= 0 else 128 - process.returncode
            if status and not self.status:
                self.status = status
                if status != REQUEUE and not self.keep_going:
                    self.send(signal.SIGTERM)
        return free
