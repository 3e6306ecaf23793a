"""Show how far the stages of submitted chains are (status), show their logs (logs), or end a chain (cancel).

A chain's folder (layout.py) has the list of submitted jobs (jobs.tsv), the state that each task reports (states/), and
the logs (logs/). Slurm's queue gives the rest. If Slurm no longer knows a job, the files still have its state. Only
the newest submission of a stage is shown.

The files are data: chains of other users are skipped, malformed files are reported, and control characters are escaped.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from teacherlm.chain.controller import ask
from teacherlm.chain.job_list import listed_jobs, read_state, under_way
from teacherlm.chain.layout import ChainFolder, is_atlas, submitted_chains
from teacherlm.core import manifests, tables
from teacherlm.core.errors import UserError, one_line, reason
from teacherlm.core.flags import flag, parse
from teacherlm.core.job_records import DONE, Task, kind_of, newest_tasks
from teacherlm.core.owners import is_own, user_name
from teacherlm.core.places import runs_folder
from teacherlm.core.programs import called, print_error
from teacherlm.core.terminal import cut, escaped, last_lines, plural


@dataclass(frozen=True)
class SteerFlags:
    """The chains to show or to end."""

    command: str = flag(
        positional=True, choices=("status", "logs", "cancel"), help="show the state, show the logs, or cancel"
    )
    runs: Path = flag(factory=runs_folder, help="folder of the chains (default: $RUNS, or runs)")
    chain: str | None = flag(
        factory=lambda: os.environ.get("CHAIN") or None,
        help="only chains with this text in their path below RUNS (default: $CHAIN, or all)",
    )
    stage: str | None = flag(
        factory=lambda: os.environ.get("STAGE") or None,
        help="show only the logs of this stage (default: $STAGE, or all)",
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
        cancel(list(chains), read_queue(), flags.runs)
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
                f"{called()}: {one_line(str(chain.path))}: this chain belongs to {owner} and is skipped",
                file=sys.stderr,
            )
    if not found:
        raise UserError(f"{runs}: no chain{f' with {name!r} in its path' if name else ''} was submitted from here")
    return found


def read_chains(folders: list[ChainFolder]) -> tuple[dict[ChainFolder, list[Task]], bool]:
    """The tasks of each chain, and whether a chain is malformed. Malformed ones are skipped and named on stderr."""
    found: dict[ChainFolder, list[Task]] = {}
    malformed = False
    for folder in folders:
        try:
            found[folder] = read_tasks(folder)
        except UserError as error:
            print_error(error)
            malformed = True
    return found, malformed


def read_queue() -> dict[tuple[str, int], str]:
    """(job, task) -> state and reason, for this user's jobs in the queue. The task is 0 if a job is not an array.

    A job that Slurm's scheduler has not looked at yet waits with the reason "None", which is not shown.
    """
    lines = ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%F|%K|%T|%r")
    queue = {}
    for line in lines:
        job, number, state, reason = line.split("|", 3)
        shown = f" ({reason})" if state == "PENDING" and reason != "None" else ""
        queue[job, int(number) if number.isdigit() else 0] = state + shown
    return queue


def read_tasks(chain: ChainFolder) -> list[Task]:
    """The tasks of a chain, from the newest submission of each stage, in the order of its stages.

    Raises:
        UserError: the chain's jobs.tsv is malformed.
    """
    return newest_tasks(listed_jobs(chain))


def state_of(chain: ChainFolder, task: Task, queue: Mapping[tuple[str, int], str]) -> str:
    if (task.job, task.number) in queue:
        return queue[task.job, task.number]
    said = read_state(chain, task)
    if said is None:
        return "cancelled before it began"
    if said in ("running", "requeued"):
        return "ended without a report (killed, cancelled, or node failure)"
    return cut(escaped(said), 200)


def status(chain: ChainFolder, tasks: list[Task], queue: Mapping[tuple[str, int], str]) -> str:
    """A table of the stages, and the last line of each failed task's log."""
    states = {task: state_of(chain, task, queue) for task in tasks}
    rows = [("stage", "job", "state", "progress")]
    for stage in dict.fromkeys(task.stage for task in tasks):
        of_stage = [task for task in tasks if task.stage == stage]
        counted = Counter(states[task] for task in of_stage)
        said = ", ".join(f"{count} {state}" if len(of_stage) > 1 else state for state, count in counted.items())
        jobs = dict.fromkeys(task.job for task in of_stage if task.job != DONE)
        rows.append((stage, " ".join(jobs) or DONE, said, progress(chain, of_stage)))
    lines = [escaped(str(chain.path)), tables.table(rows)]
    for task in tasks:
        if states[task].startswith(("failed", "ended")):
            log = chain.logs / task.log
            lines.append(f"{task.stage} {task.number}: {last_line(log)}  ({escaped(str(log))})")
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
        return plural(count_texts(chain.enhanced(tasks[0].work)), "text")
    if stage == "finetune":
        log = chain.training_log
        return f"step {int(json.loads(last_line(log))['step'])}" if log.is_file() and log.stat().st_size else ""
    if stage == "evaluate" and not is_atlas(chain):
        checkpoints = len(list(chain.checkpoints.glob("checkpoint-*")))
        scored = len({file.parent for file in chain.scores(tasks[0].work).glob("checkpoint-*/*.manifest.json")})
        checkpoints = max(checkpoints, scored)  # checkpoints may have been removed since
        return f"{scored} of {plural(checkpoints, 'checkpoint')} scored" if checkpoints else ""
    return ""


def count_texts(made: Path) -> int:
    """The number of texts: of the whole files, or if there are shards or progress files that are newer, of those."""
    files = [file for pattern in (".*.progress", "*_*.manifest.json") for file in made.glob(pattern) if file.is_file()]
    files = [file for file in files if not manifests.is_outdated(file)]
    redone = {whole for file in files if (whole := manifests.whole_manifest(file)) != file}
    texts = 0
    for file in files:
        if file.suffix == ".progress":
            texts += max(0, count_lines(file) - 1)
        elif file not in redone and (manifest := manifests.read_manifest(file)) and manifest["stage"] == "enhance":
            texts += int(manifest["counts"]["records"])
    return texts


def count_lines(file: Path) -> int:
    with open(file, "rb") as handle:
        return sum(1 for _ in handle)


def last_line(file: Path) -> str:
    if not file.is_file():
        return "no log"
    lines = [line for line in last_lines(file) if line.strip()]
    return cut(lines[-1], 2000) if lines else "the log is empty"


def logs(chain: ChainFolder, tasks: list[Task], stage: str | None) -> None:
    there = dict.fromkeys(task.stage for task in tasks)
    tasks = [task for task in tasks if stage in (None, task.stage, kind_of(task.stage))]
    if not tasks:
        raise UserError(f"{chain.path}: no stage {stage!r} was submitted; there are: {', '.join(there)}")
    for task in tasks:
        log = chain.logs / task.log
        if task.job == DONE and not log.is_file():  # another run did the work, and this chain has no log of it
            continue
        print(f"== {escaped(str(log))}")
        if not log.is_file():
            print("(there is no such file: the task did not begin)")
        else:
            print("\n".join(last_lines(log)) or "(the file is empty)")


def cancel(chains: Sequence[ChainFolder], queue: Mapping[tuple[str, int], str], runs: Path) -> None:
    """Cancel the jobs of the chain that is under way.

    Raises:
        UserError: several chains are under way; or Slurm does not answer.
    """
    waiting = {job for job, _ in queue}
    jobs = {chain: sorted(under_way(waiting, [chain], None), key=int) for chain in chains}
    if any(jobs.values()):
        logged = read_log_folders()
        jobs = {chain: [job for job in found if logged.get(job) == log_folder(chain)] for chain, found in jobs.items()}
    jobs = {chain: found for chain, found in jobs.items() if found}
    if len(jobs) > 1:
        paths = ", ".join(str(chain.path.relative_to(runs)) for chain in jobs)
        raise UserError(f"several chains are under way; choose one with CHAIN=..., a part of its path: {paths}")
    for chain, found in jobs.items():
        ask("scancel", *found)
        print(f"{escaped(str(chain.path))}: cancelled jobs {' '.join(found)}")
    if not jobs:
        print(f"{escaped(str(runs))}: nothing is under way")


def log_folder(chain: ChainFolder) -> Path:
    return chain.logs.resolve()


def read_log_folders() -> dict[str, Path]:
    """Job -> the folder of its log in Slurm. It shows the chain of a job, while a jobs.tsv could name any job."""
    lines = ask("squeue", "--noheader", f"--user={os.getuid()}", "--Format=ArrayJobID:24,STDOUT:4096")
    pairs = (line.partition(" ") for line in lines)
    return {job: Path(log.strip().replace("%%", "%")).parent.resolve() for job, _, log in pairs}
