"""One stage of a submitted chain, or one task of it. slurm/job.sh starts this program within a job.

`check` checks the settings of the submission, and prints the number of seconds in which a stage must end after the
warning of the time limit. `run` replaces this process by the stage, so that the job's signals reach the stage.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from teacherlm.chain import settings_file
from teacherlm.chain.graph import Graph
from teacherlm.chain.locks import lock_task
from teacherlm.chain.main import read_graph, take_settings
from teacherlm.chain.settings import saved_variables, signal_seconds
from teacherlm.core.errors import UserError
from teacherlm.core.flags import flag, parse
from teacherlm.runtime.launcher import Command, require_number, run_side_by_side


@dataclass(frozen=True)
class JobFlags:
    """The stage and the submission to start."""

    command: str = flag(positional=True, choices=("check", "run"), help="print how long it may take to end, or run it")
    stage: str = flag(positional=True, help="the name of the stage")
    settings: Path = flag(positional=True, help="the file with the settings of the submission")
    task: str = flag(positional=True, help="the array index of the task")


def main() -> int:
    flags = parse(
        JobFlags, __doc__, example="teacherlm chain-job run enhance runs/creak/all/chains/NAME/settings.json 0"
    )
    task = require_number("SLURM_ARRAY_TASK_ID", flags.task, 0)
    benchmark = take_submission(flags.settings)
    if flags.command == "check":
        take_settings(benchmark)
        print(max(signal_seconds(os.environ) // 2, 1))
        return 0
    return become(read_graph(benchmark), flags.stage, task)


def take_submission(file: Path) -> str:
    """Change to the submission's folder and put its variables into the environment; return the benchmark.

    Raises:
        UserError: the file belongs to another user, or has a variable that does not belong to a chain.
    """
    submission = settings_file.read(file)
    known = saved_variables(submission.benchmark, submission.variables, submission.variables)
    for name in submission.variables:
        if name not in known:
            raise UserError(f"{file}: variables: {name} is not a variable of a chain")
    os.environ.update(submission.variables, CHAIN_BENCHMARK=submission.benchmark)
    try:
        os.chdir(submission.directory)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {submission.directory}: this folder cannot be entered ({error})") from error
    os.environ["PWD"] = submission.directory
    return submission.benchmark


def become(graph: Graph, name: str, task: int) -> int:
    """Do a task when no other process is doing it. The task's last command replaces this process."""
    stage = next((stage for stage in graph.stages if stage.name == name), None)
    if stage is None:
        raise UserError(f"there is no stage {name!r} in this chain")
    lock = lock_task(graph, stage, task)
    commands = stage.commands(task if stage.array else None, [])
    if not commands:
        print(stage.nothing)
        return 0
    for command in commands[:-1]:
        status = run_side_by_side([Command(command.words, command.variables, [lock])], more_follows=True)
        if status:
            return status
    last = commands[-1]
    os.set_inheritable(lock, True)
    os.environ.update(last.variables)
    os.execvp(last.words[0], list(last.words))
