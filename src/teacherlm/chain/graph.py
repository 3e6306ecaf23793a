"""A chain as a graph: stages, each of which waits for the one before, what each needs and makes, and its tasks.

sample_graph.py and atlas_graph.py make the graphs. local.py runs one on this machine, slurm.py submits one, job.py runs
one stage of it in a job.
"""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from teacherlm.chain.layout import ChainFolder, RunFolder
from teacherlm.chain.site import Site
from teacherlm.runtime.launcher import Command

Absence = tuple[str, str]
"""(what is not on this machine's disks, the message that says so)"""


@dataclass(frozen=True)
class Stage:
    """A stage of a chain.

    Attributes:
        made: a file or folder that is there once something was made; None: the stage answers without it.
        commands: (task, words) -> the commands that do the task one after the other, with the words added to each. None
            for the task means all of them, by one process. A list without commands: there is nothing to do.
        work: what two chains must not make at once: a name that is the same in both.
        lock: of a task, the name of the file that is locked while it is done.
        request: what its job asks Slurm for.
        tasks: their numbers.
        array: whether they are the tasks of one job's array.
        needs: what has to be on the disks; see `Absence`.
        gpus: how many one task uses, where tasks can be done side by side on one machine; 0: they cannot.
        together: one process can do all tasks, and prints what they have in common.
        always: it is done anew each time: there is no --list_missing.
        missing: which tasks are not done, where asking each with --list_missing would take too long.
        nothing: what is said where a task has no commands.
        heading: what is printed above it, where that is not its name.
    """

    name: str
    made: Path | None
    commands: Callable[[int | None, Sequence[str]], list[Command]]
    work: str
    lock: Callable[[int], str]
    request: Callable[[Site], list[str]]
    tasks: Sequence[int] = (0,)
    array: bool = False
    needs: tuple[str, ...] = ()
    gpus: int = 0
    together: bool = False
    always: bool = False
    missing: Callable[[], list[int]] | None = None
    nothing: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Graph:
    """The stages of a chain, and where it lies.

    Attributes:
        benchmark: or atlas-SETTING.
        name: of the run.
        runs: the folder that other users may share; what lies below it has to be this user's own.
        absences: what the jobs would lack; True: things that can be made here without the network are made.
        models: the names of the models that it needs.
        with_shards: the same chain with the teacher's work cut into so many parts; None when the user has chosen, or
            there is nothing to cut.
    """

    benchmark: str
    name: str
    summary: str
    runs: Path
    folder: RunFolder
    stages: tuple[Stage, ...]
    absences: Callable[[bool], list[Absence]]
    models: tuple[str, ...] = ()
    with_shards: "Callable[[int], Graph] | None" = None

    @property
    def chain(self) -> ChainFolder:
        return self.folder.chain(self.name)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def missing_tasks(stage: Stage) -> list[int]:
    """The tasks of a stage that are not done.

    Raises:
        SystemExit: the stage refuses its settings; a line on stderr has said why.
    """
    if stage.always:
        return list(stage.tasks)
    if stage.missing is not None:
        return stage.missing()
    found: set[int] = set()
    for command in stage.commands(None, ["--list_missing"]):
        environment = {**os.environ, **command.variables, "NUM_GPUS": "0"}
        listed = subprocess.run(command.words, env=environment, stdout=subprocess.PIPE, text=True, errors="replace")
        if listed.returncode:
            raise SystemExit(listed.returncode)
        found |= {int(line) for line in listed.stdout.splitlines() if re.fullmatch("[0-9]{1,9}", line)}
    return sorted(found)


def few_processors(memory: str) -> Callable[[Site], list[str]]:
    """What the job of a stage asks for that computes nothing with a model."""

    def request(site: Site) -> list[str]:
        words = ["--cpus-per-task=2", f"--mem={memory}", "--time=04:00:00"]
        return [*words, *site.partition("CPU_PARTITION"), *site.arguments["SBATCH_ARGS"], *site.arguments["CPU_ARGS"]]

    return request
