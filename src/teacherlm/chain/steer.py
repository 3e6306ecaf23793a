"""Show how far the stages of submitted chains are (status), show their logs (logs), or end a chain (cancel).

A chain's folder (layout.py) has the list of submitted jobs (jobs.tsv), the state that each task reports (states/), and
the logs (logs/). Slurm's queue gives the rest. If Slurm no longer knows a job, the files still have its state.

The files are data: chains of other users are skipped, malformed files are reported, and control characters are escaped.
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from teacherlm.chain.controller import ask
from teacherlm.chain.layout import ChainFolder, is_atlas, submitted_chains
from teacherlm.core import manifests, tables
from teacherlm.core.errors import UserError, one_line, reason
from teacherlm.core.flags import flag, parse
from teacherlm.core.owners import is_own, read_own, user_name
from teacherlm.core.places import runs_folder
from teacherlm.core.terminal import cut, escaped, shown

TAIL = 20
"""Number of lines of a log that are shown."""
TAIL_BYTES = 2**16
"""Number of bytes at the end of a log that are read to find these lines."""
LARGEST = 2**22
"""Maximum number of bytes of a jobs.tsv."""
STAGES = ("prepare", "enhance", "merge", "finetune", "train", "evaluate", "score", "report")
RANGES = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")
COLUMNS = {
    "stage": re.compile(f"({'|'.join(STAGES)})(-[a-z0-9_]+)?"),
    "job": re.compile("[0-9]{1,18}"),
    "tasks": RANGES,
    "waits for": re.compile("-|[0-9 ]+"),
    "work": re.compile(r"[^/\0]+"),
    "log": re.compile(r".*/[a-z]+(-[a-z0-9_]+)?(-%a)?[.]log"),
}
"""Column of a jobs.tsv -> the pattern of its cells."""


@dataclass(frozen=True)
class Task:
    """One task of a stage, from the last submission that had it."""

    stage: str
    job: str
    number: int
    work: str
    log: Path


@dataclass(frozen=True)
class SteerFlags:
    """The chains to show or to end."""

    command: str = flag(
        positional=True, choices=("status", "logs", "cancel"), help="show the state, show the logs, or cancel"
    )
    runs: Path = flag(factory=runs_folder, help="folder of the chains (default: $RUNS, or runs)")
    chain: str | None = flag(
        factory=lambda: os.environ.get("CHAIN"), help="only chains whose path has this text (default: $CHAIN, or all)"
    )
    stage: str | None = flag(
        factory=lambda: os.environ.get("STAGE"), help="show only the logs of this stage (default: $STAGE, or all)"
    )


def main() -> int:
    flags = parse(SteerFlags, __doc__, example="teacherlm steer logs --stage finetune")
    chains, malformed = read_chains(find_chains(flags.runs, flags.chain))
    if not chains:
        return 2
    if flags.command == "logs":
        for chain, tasks in chains.items():
            logs(chain, tasks, flags.stage)
    elif flags.command == "status":
        queue = read_queue()
        print("\n\n".join(status(chain, tasks, queue) for chain, tasks in chains.items()))
    else:
        cancel(chains, read_queue())
    return 2 if malformed else 0


def find_chains(runs: Path, name: str | None) -> list[ChainFolder]:
    """The folders of this user's chains, ordered by the time of submission. Other users' chains are named on stderr.

    Raises:
        UserError: there are none.
    """
    found = []
    for chain in submitted_chains(runs):
        if name is not None and name not in str(chain.path.relative_to(runs)):
            continue
        if is_own(chain.jobs.lstat()):
            found.append(chain)
        else:
            owner = user_name(chain.jobs.lstat().st_uid)
            print(
                f"teacherlm steer: {one_line(str(chain.path))}: this chain belongs to {owner} and is skipped",
                file=sys.stderr,
            )
    if not found:
        raise UserError(f"{runs}: no chain{f' with {name!r} in its name' if name else ''} was submitted from here")
    return found


def read_chains(folders: list[ChainFolder]) -> tuple[dict[ChainFolder, list[Task]], bool]:
    """The tasks of each chain, and whether a chain is malformed. Malformed ones are skipped and named on stderr."""
    found: dict[ChainFolder, list[Task]] = {}
    malformed = False
    for folder in folders:
        try:
            found[folder] = read_tasks(folder)
        except UserError as error:
            print(f"teacherlm steer: error: {one_line(error)}", file=sys.stderr)
            malformed = True
    return found, malformed


def read_queue() -> dict[tuple[str, int], str]:
    """(job, task) -> state and reason, for this user's jobs in the queue. The task is 0 if a job is not an array."""
    lines = ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%F|%K|%T|%r")
    queue = {}
    for line in lines:
        job, number, state, reason = line.split("|", 3)
        queue[job, int(number) if number.isdigit() else 0] = state + (f" ({reason})" if state == "PENDING" else "")
    return queue


def read_tasks(chain: ChainFolder) -> list[Task]:
    """The tasks of a chain in the order of its stages. A task that was submitted several times has its last job.

    Raises:
        UserError: the chain's jobs.tsv is malformed.
    """
    file = chain.jobs
    tasks: dict[tuple[str, int], Task] = {}
    text = read_own(file, LARGEST).decode("utf-8", "surrogateescape")
    for line, row in enumerate(text.split("\n")[:-1], 1):
        cells = row.split("\t")
        if len(cells) != len(COLUMNS):
            raise UserError(f"{file}, line {line}: {len(COLUMNS)} columns were expected, found {len(cells)}")
        for (name, pattern), cell in zip(COLUMNS.items(), cells):
            if not pattern.fullmatch(cell):
                raise UserError(f"{file}, line {line}: {shown(cell)} is not valid in the column {name!r}")
        stage, job, ranges, _, work, log = cells
        for number in numbers(ranges):
            name = Path(log).name.replace("%a", str(number))  # the chain's folder may have moved since the submission
            tasks[stage, number] = Task(stage, job, number, work, chain.logs / name)
    return sorted(tasks.values(), key=lambda task: (STAGES.index(kind_of(task.stage)), task.number))


def kind_of(stage: str) -> str:
    """The stage's name without the kind of explanation: enhance-cot is one of several stages that enhance."""
    return stage.partition("-")[0]


def numbers(ranges: str) -> list[int]:
    """0-2,5 -> 0 1 2 5."""
    found: list[int] = []
    for part in ranges.split(",")[:10_000]:  # Slurm's arrays are far smaller
        first, _, last = part.partition("-")
        found += range(int(first), min(int(last or first), int(first) + 10_000) + 1)
    return found[:10_000]


def state_of(chain: ChainFolder, task: Task, queue: Mapping[tuple[str, int], str]) -> str:
    if (task.job, task.number) in queue:
        return queue[task.job, task.number]
    said, job = read_note(chain.note(task.stage, task.number))
    if job != task.job:
        return "cancelled before it began"
    return "ended without a report (killed, cancelled, or node failure)" if said in ("running", "requeued") else said


def read_note(note: Path) -> tuple[str, str]:
    """The state that a task has written, and the number of its job. Both texts are empty if it has written none."""
    if not note.is_file():
        return "", ""
    try:
        said, job = read_own(note, 4096).decode("utf-8", "replace").split("\t")[:2]
    except (UserError, ValueError):
        return "", ""
    return cut(escaped(said), 200), job


def status(chain: ChainFolder, tasks: list[Task], queue: Mapping[tuple[str, int], str]) -> str:
    """A table of the stages, and the last line of each failed task's log."""
    states = {task: state_of(chain, task, queue) for task in tasks}
    rows = [("stage", "job", "state", "progress")]
    for stage in dict.fromkeys(task.stage for task in tasks):
        of_stage = [task for task in tasks if task.stage == stage]
        counted = Counter(states[task] for task in of_stage)
        said = ", ".join(f"{count} {state}" if len(of_stage) > 1 else state for state, count in counted.items())
        rows.append((stage, " ".join(dict.fromkeys(task.job for task in of_stage)), said, progress(chain, of_stage)))
    lines = [escaped(str(chain.path)), tables.table(rows)]
    for task in tasks:
        if states[task].startswith(("failed", "ended")):
            lines.append(f"{task.stage} {task.number}: {last_line(task.log)}  ({escaped(str(task.log))})")
    return "\n".join(lines)


def progress(chain: ChainFolder, tasks: list[Task]) -> str:
    """How much of a stage is done: the number of texts, steps or scored checkpoints."""
    try:
        return count_progress(chain, tasks)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # a malformed file
        return f"unknown ({reason(error)})"


def count_progress(chain: ChainFolder, tasks: list[Task]) -> str:
    stage = kind_of(tasks[0].stage)
    if stage == "enhance":
        made = chain.enhanced(tasks[0].work)
        texts = sum(count_lines(file) - 1 for file in made.glob(".*.progress") if file.is_file())
        for path in made.glob("*_*.manifest.json"):
            manifest = manifests.read_manifest(path)
            # The texts of a merged file are counted in the manifests of its shards.
            if manifest and manifest["stage"] == "enhance" and "shards" not in manifest["counts"]:
                texts += int(manifest["counts"]["records"])
        return f"{texts} texts"
    if stage == "finetune":
        log = chain.training_log
        return f"step {int(json.loads(last_line(log))['step'])}" if log.is_file() and log.stat().st_size else ""
    if stage == "evaluate" and not is_atlas(chain):
        scored = list(chain.scores(tasks[0].work).glob("checkpoint-*/*.manifest.json"))
        return f"{len(scored)} checkpoints scored"
    return ""


def count_lines(file: Path) -> int:
    with open(file, "rb") as handle:
        return sum(1 for _ in handle)


def last_line(file: Path) -> str:
    if not file.is_file():
        return "no log"
    lines = [line for line in last_lines(file) if line.strip()]
    return cut(lines[-1], 2000) if lines else "the log is empty"


def last_lines(file: Path) -> list[str]:
    """The last lines of a log, with control characters escaped."""
    with open(file, "rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - TAIL_BYTES))
        text = handle.read(TAIL_BYTES).decode("utf-8", "replace")
    return [escaped(line.expandtabs()) for line in text.splitlines()[-TAIL:]]


def logs(chain: ChainFolder, tasks: list[Task], stage: str | None) -> None:
    tasks = [task for task in tasks if stage in (None, task.stage, kind_of(task.stage))]
    if not tasks:
        raise UserError(f"{chain.path}: no stage {stage!r} was submitted")
    for task in tasks:
        print(f"== {escaped(str(task.log))}")
        if task.log.is_file():
            print("\n".join(last_lines(task.log)))


def cancel(chains: Mapping[ChainFolder, list[Task]], queue: Mapping[tuple[str, int], str]) -> None:
    """Cancel the jobs of the chain that is under way.

    Raises:
        UserError: several chains are under way; or Slurm does not answer.
    """
    waiting = {job for job, _ in queue}
    jobs = {chain: sorted({task.job for task in tasks} & waiting, key=int) for chain, tasks in chains.items()}
    if any(jobs.values()):
        logged = read_log_folders()
        jobs = {chain: [job for job in found if logged.get(job) == log_folder(chain)] for chain, found in jobs.items()}
    jobs = {chain: found for chain, found in jobs.items() if found}
    if len(jobs) > 1:
        raise UserError(
            f"several chains are under way; choose one with CHAIN=...: {', '.join(chain.name for chain in jobs)}"
        )
    for chain, found in jobs.items():
        ask("scancel", *found)
        print(f"{escaped(str(chain.path))}: cancelled jobs {' '.join(found)}")
    if not jobs:
        print("nothing is under way")


def log_folder(chain: ChainFolder) -> Path:
    return chain.logs.resolve()


def read_log_folders() -> dict[str, Path]:
    """Job -> the folder of its log in Slurm. It shows the chain of a job, while a jobs.tsv could name any job."""
    lines = ask("squeue", "--noheader", f"--user={os.getuid()}", "--Format=ArrayJobID:24,STDOUT:4096")
    pairs = (line.partition(" ") for line in lines)
    return {job: Path(log.strip().replace("%%", "%")).parent.resolve() for job, _, log in pairs}
