"""Download what a chain's jobs need, where there is internet: the models, and the benchmark's data (then prepared)."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from teacherlm.chain.local import run_task
from teacherlm.chain.main import read_graph
from teacherlm.chain.settings import is_atlas, saved_variables
from teacherlm.chain.site import has_scripts, load_site
from teacherlm.chain.variables import known_names
from teacherlm.core.errors import UserError
from teacherlm.core.job_records import kind_of
from teacherlm.core.owners import make_own_folder
from teacherlm.core.programs import called
from teacherlm.runtime.launcher import program

USAGE = """\
usage: [STUDENT=...] [TEACHER=...] [TASK=...] [LIMIT=...] [RUNS=...] bash slurm/download.sh BENCHMARK

Give the variables that the chain will have: TASK says whether it needs a teacher, and the data is prepared in the
folder of LIMIT below RUNS.

example:
  STUDENT=bloomz-7b1 bash slurm/download.sh creak"""


def main() -> int:
    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if len(words) != 1:
        print(USAGE, file=sys.stderr)
        return 2
    benchmark = words[0]
    if is_atlas(benchmark):
        raise UserError(
            "atlas/preprocessing/download_*.py download what ATLAS's experiments need (docs/how-to/atlas.md)"
        )
    if has_scripts():
        load_site(saved_variables(benchmark, {*os.environ, *known_names()}, os.environ))
    graph = read_graph(benchmark)
    new = [part for part in (graph.folder.locks, *graph.folder.locks.parents) if not part.exists()]
    make_own_folder(graph.folder.locks.absolute(), graph.runs.absolute())  # before downloads that take hours
    for model in graph.models:
        start = program("chain-facts")
        command = [*start[:-1], "--called", called(), start[-1], "folder", model]
        status = subprocess.run(command).returncode
        if status:
            remove_empty(new)
            return status
    for stage in graph.stages:
        status = run_task(graph, stage, None) if kind_of(stage.name) == "prepare" else 0
        if status:
            return status
    return 0


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that nothing was written into, the innermost first."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
