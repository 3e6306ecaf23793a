"""Run a chain on this machine (LAUNCHER=local): its stages one after the other, and tasks side by side on its GPUs.

A shard of the teacher's work, or the scoring of one model, needs a GPU (or as many as the model's YAML says). Where
this machine has more, several tasks run at once, each with GPUs of its own. NUM_GPUS=2 on a machine without GPUs lets
two processes share its processors. Finetuning and ATLAS's experiments use all GPUs by themselves.
"""

import functools
import os
import shlex
import signal
from collections.abc import Mapping, Sequence

from teacherlm.chain.graph import Graph, Stage, missing_tasks
from teacherlm.chain.locks import lock_task
from teacherlm.core.interrupts import REQUEUE
from teacherlm.core.owners import make_own_folder
from teacherlm.runtime.launcher import Command, processes_here, run_side_by_side

STOPPED = (REQUEUE, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)
"""Exit statuses of tasks that were asked to stop."""


def run_here(graph: Graph) -> int:
    """Run all stages; what is done and unchanged skips itself. Returns the exit status of the one that failed, or 0."""
    make_own_folder(graph.folder.locks.absolute(), graph.runs.absolute())
    for name in [stage.name for stage in graph.stages]:
        graph = cut_for_devices(graph, graph.stage(name))
        stage = graph.stage(name)
        print(f"\n== {stage.heading or stage.name}", flush=True)
        status = run_stage(graph, stage)
        if status:
            return status
    return 0


def print_plan(graph: Graph) -> None:
    """What `run_here` would start, as commands that a shell understands. Nothing is made."""
    for stage in graph.stages:
        print(f"\n== {stage.heading or stage.name}")
        tasks = [None] if stage.together or not stage.array else list(stage.tasks)
        for task in tasks:
            for command in stage.commands(task, []):
                print(shlex.join([*(f"{name}={value}" for name, value in command.variables.items()), *command.words]))


def cut_for_devices(graph: Graph, stage: Stage) -> Graph:
    """Cut the teacher's work into as many shards as can be done at once, unless the user has said how many, or it is
    done as a whole."""
    if stage.name != "enhance" or graph.with_shards is None:
        return graph
    places = len(device_groups(stage))
    if places < 2 or not missing_tasks(stage):
        return graph
    return graph.with_shards(places)


def run_stage(graph: Graph, stage: Stage) -> int:
    groups = device_groups(stage)
    if stage.array and len(groups) > 1 and len(stage.tasks) > 1:
        return run_on_devices(graph, stage, groups)
    if stage.together or not stage.array:
        return run_task(graph, stage, None)
    for task in stage.tasks:
        status = run_task(graph, stage, task)
        if status:
            return status
    return 0


def run_task(graph: Graph, stage: Stage, task: int | None) -> int:
    """Do a task, or all of them by one process, when nobody else is at it."""
    lock = lock_task(graph, stage, task or 0)
    try:
        commands = stage.commands(task, [])
        for command in commands:
            one = Command(command.words, command.variables, [lock])
            status = run_side_by_side([one], in_front=True, more_follows=True)
            if status:
                return status
        if not commands:
            print(stage.nothing, flush=True)
        return 0
    finally:
        os.close(lock)


def run_on_devices(graph: Graph, stage: Stage, groups: Sequence[Mapping[str, str]]) -> int:
    """Do the tasks of a stage side by side, as many at a time as there are groups of devices.

    Of a stage that one process could do as a whole, that process comes afterwards. It prints what the tasks have in
    common, does what a failed task has left, and its status counts.
    """
    tasks = missing_tasks(stage) if stage.together else list(stage.tasks)
    locks: list[int] = []
    try:
        commands = []
        for task in tasks:
            locks.append(lock_task(graph, stage, task))
            commands += [Command(one.words, one.variables, locks[-1:]) for one in stage.commands(task, [])]
        print(f"{stage.name}: {len(commands)} tasks, {len(groups)} at a time", flush=True)
        status = run_side_by_side(commands, groups, keep_going=stage.together, more_follows=True)
    finally:
        for lock in locks:
            os.close(lock)
    failed = status and not (stage.together and status not in STOPPED)
    return status if failed or not stage.together else run_task(graph, stage, None)


def device_groups(stage: Stage) -> list[dict[str, str]]:
    """The variables by which a task gets devices of its own, for each task that can be done at once."""
    count = processes_on_machine() if stage.gpus else 0
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = visible or [str(number) for number in range(count)]
    devices = [visible[number % len(visible)] for number in range(count)]
    places = range(0, count - stage.gpus + 1, stage.gpus) if stage.gpus else ()
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[first : first + stage.gpus])} for first in places]


@functools.cache
def processes_on_machine() -> int:
    return processes_here()
