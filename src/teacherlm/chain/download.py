"""Download what a chain's jobs need, where there is internet: the models, and the benchmark's data (then prepared)."""

import os
import subprocess
import sys

from teacherlm.catalog.servers import is_address
from teacherlm.chain.local import run_task
from teacherlm.chain.main import read_graph
from teacherlm.chain.settings import is_atlas, saved_variables
from teacherlm.chain.site import has_scripts, load_site
from teacherlm.chain.variables import known_names
from teacherlm.core.errors import UserError
from teacherlm.core.owners import make_own_folder
from teacherlm.runtime.launcher import stage_python

USAGE = """\
usage: [STUDENT=...] [TEACHER=...] [TASK=...] bash slurm/download.sh BENCHMARK

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
        load_site(saved_variables(benchmark, {*os.environ, *known_names()}))
    graph = read_graph(benchmark)
    make_own_folder(graph.folder.locks.absolute(), graph.runs.absolute())
    for model in graph.models:
        if not model.startswith("field:") and not is_address(model):
            command = [stage_python(), "-P", "-m", "teacherlm.catalog.models", "folder", model]
            status = subprocess.run(command).returncode
            if status:
                return status
    return run_task(graph, graph.stage("prepare"), None)
