"""One stage of a chain that was submitted, or one task of it: what slurm/job.sh starts within a job.

`check` reads and checks the settings of the submission, and prints how many seconds a stage has to end in after it was
warned of the time limit. `run` becomes the stage, so that the signals of the job reach it.
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
    """Which stage of which submission is started."""

    command: str = flag(positional=True, choices=("check", "run"), help="print how long it may take to end, or run it")
    stage: str = flag(positional=True, help="the name of the stage")
    settings: Path = flag(positional=True, help="the file with the settings of the submission")
    task: str = flag(positional=True, help="the number of the array's task")


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
    """Go where the submission was made, and put its variables into the environment; returns the benchmark.

    Raises:
        UserError: the file is none of this user's own, or has a variable that is none of a chain's.
    """
    submission = settings_file.read(file)
    known = saved_variables(submission.benchmark)
    for name in submission.variables:
        if name not in known:
            raise UserError(f"{file}: variables: {name} is none of a chain's")
    os.environ.update(submission.variables, CHAIN_BENCHMARK=submission.benchmark)
    try:
        os.chdir(submission.directory)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {submission.directory}: this folder cannot be entered ({error})") from error
    os.environ["PWD"] = submission.directory
    return submission.benchmark


def become(graph: Graph, name: str, task: int) -> int:
    """Do a task when nobody else is at it; the last of its commands takes the place of this process."""
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
