"""Run a chain on this machine (LAUNCHER=local): its stages one after the other, and tasks side by side on its GPUs.

A shard of the teacher's work, or the scoring of one model, needs one GPU, or the number in the model's YAML. If this
machine has more GPUs, several tasks run at the same time, each on different GPUs. On a machine without GPUs, NUM_GPUS=2
runs two tasks that share the CPUs. Finetuning and ATLAS's experiments use all GPUs in one task.
"""

import functools
import os
import shlex
import signal
from collections.abc import Mapping, Sequence

from teacherlm.chain.graph import Graph, Stage, missing_indices
from teacherlm.chain.job_list import append, done_row, says_done
from teacherlm.chain.locks import lock_task
from teacherlm.core.interrupts import REQUEUE
from teacherlm.core.owners import make_own_folder
from teacherlm.runtime.launcher import Command, processes_here, run_side_by_side

STOPPED = (REQUEUE, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)
"""Exit statuses of tasks that a signal stopped."""


def run_here(graph: Graph) -> int:
    """Run all stages, which skip work that is done and unchanged. Return the exit status of a failed stage, or 0."""
    make_own_folder(graph.folder.locks.absolute(), graph.runs.absolute())
    for name in [stage.name for stage in graph.stages]:
        graph = cut_for_devices(graph, graph.stage(name))
        stage = graph.stage(name)
        print(f"\n== {stage.heading or stage.name}", flush=True)
        status = run_stage(graph, stage)
        if status:
            return status
        note_done(graph, stage)
    return 0


def note_done(graph: Graph, stage: Stage) -> None:
    """Tell the list of jobs that a stage is done, if the chain was submitted to Slurm before."""
    if graph.chain.jobs.is_file() and not says_done(graph.chain, stage.name):
        append(graph.chain, done_row(graph.chain, stage.name, list(stage.indices), stage.work, stage.array))


def print_plan(graph: Graph) -> None:
    """Print the commands that `run_here` would start, in a shell's syntax. Nothing is written."""
    for stage in graph.stages:
        print(f"\n== {stage.heading or stage.name}")
        indices = [None] if stage.together or not stage.array else list(stage.indices)
        for index in indices:
            for command in stage.commands(index, []):
                print(shlex.join([*(f"{name}={value}" for name, value in command.variables.items()), *command.words]))


def cut_for_devices(graph: Graph, stage: Stage) -> Graph:
    """Split a teacher's work into as many shards as can run at once, unless the user has set the number or the work
    is done."""
    cut = graph.with_shards.get(stage.name)
    if cut is None:
        return graph
    places = len(device_groups(stage))
    if places < 2 or not missing_indices(stage):
        return graph
    return cut(places)


def run_stage(graph: Graph, stage: Stage) -> int:
    groups = device_groups(stage)
    if stage.array and len(groups) > 1 and len(stage.indices) > 1:
        return run_on_devices(graph, stage, groups)
    if stage.together or not stage.array:
        return run_task(graph, stage, None)
    for index in stage.indices:
        status = run_task(graph, stage, index)
        if status:
            return status
    return 0


def run_task(graph: Graph, stage: Stage, index: int | None) -> int:
    """Do a task, or all tasks in one process, when no other process is doing it."""
    lock = lock_task(graph, stage, index or 0)
    try:
        commands = stage.commands(index, [])
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

    If one process can also do all tasks together, that process runs afterwards. It prints their common result and does
    the work of failed tasks, and its status is returned.
    """
    indices = missing_indices(stage) if stage.together else list(stage.indices)
    locks: list[int] = []
    try:
        commands = []
        for index in indices:
            locks.append(lock_task(graph, stage, index))
            commands += [Command(one.words, one.variables, locks[-1:]) for one in stage.commands(index, [])]
        print(f"{stage.name}: {len(commands)} tasks, {len(groups)} at a time", flush=True)
        status = run_side_by_side(commands, groups, keep_going=stage.together, more_follows=True)
    finally:
        for lock in locks:
            os.close(lock)
    failed = status and not (stage.together and status not in STOPPED)
    return status if failed or not stage.together else run_task(graph, stage, None)


def device_groups(stage: Stage) -> list[dict[str, str]]:
    """For each task that can run at the same time, the variables that give it different devices."""
    count = processes_on_machine() if stage.gpus else 0
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    visible = visible or [str(number) for number in range(count)]
    devices = [visible[number % len(visible)] for number in range(count)]
    places = range(0, count - stage.gpus + 1, stage.gpus) if stage.gpus else ()
    return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[first : first + stage.gpus])} for first in places]


@functools.cache
def processes_on_machine() -> int:
    return processes_here()
