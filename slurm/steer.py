"""Chains that were submitted: how far each stage is (status), their logs, and their end (cancel).

A chain's folder, RUNS/BENCHMARK/SAMPLES/chains/NAME, has jobs.tsv, what was submitted; states/, what each task says of
itself; logs/. Slurm is asked for the rest; when it has forgotten a job, or lost it with its node, the files still tell.
"""

import argparse
import csv
import json
import os
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from teacherlm import manifests, tables
from teacherlm.errors import Parser, UserError, run

TAIL = 20
"""Lines of a log that are shown."""
COLUMNS = ("stage", "job", "tasks", "after", "work", "log")


@dataclass(frozen=True)
class Task:
    """One task of a stage, as it was last submitted."""

    stage: str
    job: str
    number: int
    work: str
    log: Path


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["status", "logs", "cancel"])
    parser.add_argument("--runs", type=Path, default=Path(os.environ.get("RUNS") or "runs"), help="(default: $RUNS)")
    parser.add_argument("--chain", default=os.environ.get("CHAIN"), help="a part of its name (default: $CHAIN, or all)")
    parser.add_argument(
        "--stage", default=os.environ.get("STAGE"), help="of logs: this one's (default: $STAGE, or all)"
    )
    args = parser.parse_args()
    chains = find_chains(args.runs, args.chain)
    queue = read_queue()
    if args.command == "status":
        print("\n\n".join(status(chain, queue) for chain in chains))
    elif args.command == "logs":
        for chain in chains:
            logs(chain, args.stage)
    else:
        cancel(chains, queue)


def find_chains(runs: Path, name: str | None) -> list[Path]:
    """Folders of the chains, the one that was submitted last at the end."""
    lists = sorted(runs.glob("*/*/chains/*/jobs.tsv"), key=lambda path: path.stat().st_mtime)
    found = [path.parent for path in lists if name is None or name in str(path.parent.relative_to(runs))]
    if not found:
        raise UserError(f"{runs}: no chain{f' with {name!r} in its name' if name else ''} was submitted from here")
    return found


def read_queue() -> dict[tuple[str, int], str]:
    """(job, task) -> state and reason of what Slurm still has to do; of a job that is no array the task is 0."""
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%F|%K|%T|%r"]
    try:
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    except FileNotFoundError:
        raise UserError("squeue: no such command; is this a login node of the cluster?") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().rpartition("\n")[2]  # the last line has it
        raise UserError(f"Slurm does not answer ({reason}); ask again later") from error
    queue = {}
    for line in lines:
        job, number, state, reason = line.split("|", 3)
        queue[job, int(number) if number.isdigit() else 0] = state + (f" ({reason})" if state == "PENDING" else "")
    return queue


def read_tasks(chain: Path) -> list[Task]:
    """The tasks of a chain in the order of its stages, each as it was last submitted."""
    tasks: dict[tuple[str, int], Task] = {}
    with open(chain / "jobs.tsv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, COLUMNS, delimiter="\t", quoting=csv.QUOTE_NONE):
            for number in numbers(row["tasks"]):
                log = Path(row["log"].replace("%%", "%").replace("%a", str(number)))
                tasks[row["stage"], number] = Task(row["stage"], row["job"], number, row["work"], log)
    order = ("prepare", "enhance", "merge", "finetune", "train", "evaluate", "score", "report")
    return sorted(tasks.values(), key=lambda task: (order.index(task.stage), task.number))


def numbers(ranges: str) -> list[int]:
    """0-2,5 -> 0 1 2 5."""
    found: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def state_of(chain: Path, task: Task, queue: Mapping[tuple[str, int], str]) -> str:
    if (task.job, task.number) in queue:
        return queue[task.job, task.number]
    note = chain / "states" / f"{task.stage}-{task.number}"
    said, job = note.read_text(encoding="utf-8").split("\t")[:2] if note.is_file() else ("", "")
    if job != task.job:
        return "cancelled before it began"
    return (
        "ended without a word (killed, cancelled, or its node went down)" if said in ("running", "requeued") else said
    )


def status(chain: Path, queue: Mapping[tuple[str, int], str]) -> str:
    """A table of the stages, and the last words of what failed."""
    tasks = read_tasks(chain)
    states = {task: state_of(chain, task, queue) for task in tasks}
    rows = [("stage", "job", "state", "progress")]
    for stage in dict.fromkeys(task.stage for task in tasks):
        of_stage = [task for task in tasks if task.stage == stage]
        counted = Counter(states[task] for task in of_stage)
        said = ", ".join(f"{count} {state}" if len(of_stage) > 1 else state for state, count in counted.items())
        rows.append((stage, " ".join(dict.fromkeys(task.job for task in of_stage)), said, progress(chain, of_stage)))
    lines = [str(chain), tables.table(rows)]
    for task in tasks:
        if states[task].startswith(("failed", "ended")):
            lines.append(f"{task.stage} {task.number}: {last_line(task.log)}  ({task.log})")
    return "\n".join(lines)


def progress(chain: Path, tasks: list[Task]) -> str:
    """How much of a stage is done: texts, steps, scored models."""
    folder, stage = chain.parent.parent, tasks[0].stage
    if stage == "enhance":
        made = folder / "enhance" / tasks[0].work.removeprefix("enhance-")
        texts = sum(count_lines(file) - 1 for file in made.glob(".*.progress") if file.is_file())
        for path in made.glob("*_*.manifest.json"):
            manifest = manifests.read_manifest(path)
            if manifest["stage"] == "enhance" and "shards" not in manifest["counts"]:  # merged: counted in its shards
                texts += manifest["counts"]["records"]
        return f"{texts} texts"
    if stage == "finetune":
        log = folder / "finetune" / chain.name / "log.jsonl"
        return f"step {json.loads(last_line(log))['step']}" if log.is_file() and log.stat().st_size else ""
    if stage == "evaluate" and folder.parent.name != "atlas":
        scored = list((folder / "evaluate" / chain.name).glob("checkpoint-*/*.manifest.json"))
        return f"{len(scored)} checkpoints scored"
    return ""


def count_lines(file: Path) -> int:
    with open(file, "rb") as handle:
        return sum(1 for _ in handle)


def last_line(file: Path) -> str:
    if not file.is_file():
        return "no log"
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "the log is empty"


def logs(chain: Path, stage: str | None) -> None:
    tasks = [task for task in read_tasks(chain) if stage in (None, task.stage)]
    if not tasks:
        raise UserError(f"{chain}: no stage {stage!r} was submitted")
    for task in tasks:
        print(f"== {task.log}")
        if task.log.is_file():
            print("\n".join(task.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]))


def cancel(chains: list[Path], queue: Mapping[tuple[str, int], str]) -> None:
    """End the jobs of the one chain that has any.

    Raises:
        UserError: several chains have, and none was named.
    """
    waiting = {job for job, _ in queue}
    jobs = {chain: sorted({task.job for task in read_tasks(chain)} & waiting, key=int) for chain in chains}
    jobs = {chain: found for chain, found in jobs.items() if found}
    if len(jobs) > 1:
        raise UserError(
            f"several chains are under way; CHAIN=... says which: {', '.join(chain.name for chain in jobs)}"
        )
    for chain, found in jobs.items():
        subprocess.run(["scancel", *found], check=True)
        print(f"{chain}: cancelled jobs {' '.join(found)}")
    if not jobs:
        print("nothing is under way")


if __name__ == "__main__":
    run(main)
