"""A chain as a graph of stages. Each stage has tasks, inputs and outputs, and waits for the stage before it.

sample_graph.py and atlas_graph.py make graphs. local.py runs a graph on this machine, slurm.py submits it, and job.py
runs one of its stages in a job.
"""

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from teacherlm.chain.layout import ChainFolder, RunFolder
from teacherlm.chain.site import Site
from teacherlm.runtime.launcher import Command

Absence = tuple[str, str]
"""(a model or path that is not on this machine's disks, the message that says so)"""
CPU_TIME = "04:00:00"
"""The time that jobs without a model ask for."""


@dataclass(frozen=True)
class Stage:
    """A stage of a chain.

    Attributes:
        made: a path that exists after the stage has made something. A dry run calls --list_missing only if it exists,
            or if `made` is None.
        commands: (index, words) -> the commands that do the task one after the other, each with `words` added. The
            index None means all tasks in one process. An empty list means that there is nothing to do.
        work: the name of the stage's work. Chains whose stages have the same work must not do it at the same time.
        lock: index -> the name of the file that is locked while the task is done.
        request: the arguments of sbatch with the resources of its job.
        indices: the array indices of the stage's tasks.
        array: whether the job is an array with one element per task.
        needs: the models or paths that must be on the disks; see `Absence`.
        gpus: the number of GPUs of one task, if tasks can run side by side on one machine, otherwise 0.
        together: whether one process can do all tasks, and prints their common result.
        always: whether the stage only prints, so that nothing shows whether it was done. It has no --list_missing, and
            is submitted together with a stage before or after it that is not done.
        missing: a function that returns the tasks that are not done, if --list_missing would take too long.
        nothing: the message for a task without commands.
        heading: the heading that is printed before the stage runs, by default its name.
    """

    name: str
    made: Path | None
    commands: Callable[[int | None, Sequence[str]], list[Command]]
    work: str
    lock: Callable[[int], str]
    request: Callable[[Site], list[str]]
    indices: Sequence[int] = (0,)
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
    """The stages of a chain, and its folders.

    Attributes:
        benchmark: the benchmark's name, or atlas-SETTING.
        name: the name of the run.
        runs: the folder of all runs, which may be shared. The folders of the chain below it must belong to this user.
        absences: returns what the jobs would lack. With True, it first makes what can be made here without the network.
        models: the names of the models that the chain needs.
        with_shards: name of a stage in which a teacher explains -> a function that returns the same chain with the
            given number of shards of that stage. A stage is missing if the user has set the number, or if its work
            cannot be split.
    """

    benchmark: str
    name: str
    summary: str
    runs: Path
    folder: RunFolder
    stages: tuple[Stage, ...]
    absences: Callable[[bool], list[Absence]]
    models: tuple[str, ...] = ()
    with_shards: "Mapping[str, Callable[[int], Graph]]" = field(default_factory=dict)

    @property
    def chain(self) -> ChainFolder:
        return self.folder.chain(self.name)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


def missing_indices(stage: Stage) -> list[int]:
    """The tasks of a stage that are not done.

    Raises:
        SystemExit: the stage refuses its settings; a message on stderr says why.
    """
    if stage.always:
        return list(stage.indices)
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
    """The request of a stage that uses no model: two CPUs, the given memory, four hours."""

    def request(site: Site) -> list[str]:
        words = ["--cpus-per-task=2", f"--mem={memory}", f"--time={CPU_TIME}"]
        return [*words, *site.partition("CPU_PARTITION"), *site.arguments["SBATCH_ARGS"], *site.arguments["CPU_ARGS"]]

    return request
