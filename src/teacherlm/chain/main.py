"""The chain of stages (prepare, enhance, merge, finetune, evaluate, report), run on this machine or as Slurm jobs that
wait for each other. Work that is done and unchanged is skipped."""

import os
import shutil
import sys

from teacherlm.chain import local, slurm
from teacherlm.chain.atlas_graph import atlas_graph
from teacherlm.chain.facts import ask
from teacherlm.chain.graph import Graph
from teacherlm.chain.sample_graph import sample_graph
from teacherlm.chain.settings import (
    AtlasSettings,
    Settings,
    is_atlas,
    plain,
    prepare_environment,
    read_atlas_settings,
    read_settings,
    saved_variables,
)
from teacherlm.chain.site import Site, has_scripts, load_site
from teacherlm.chain.variables import CHAIN, RUNNING, known_names, listing, misspelt
from teacherlm.core.errors import UserError

USAGE = f"""\
usage: [VARIABLE=value ...] bash slurm/chain.sh BENCHMARK      (or: make BENCHMARK VARIABLE=value ...)
       DATA_DIR=FOLDER [...] bash slurm/chain.sh atlas-SETTING  (or: make atlas-SETTING ...; docs/how-to/atlas.md)

{listing(CHAIN, RUNNING)}
example:
  STUDENT=smollm2-135m TASK=cot_tail LIMIT=200 bash slurm/chain.sh creak
"""


def main() -> int:
    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(words) > 1 and all("=" in word for word in words[1:]):
        raise UserError(
            plain(f"{words[1]}: variables stand before the command: {words[1]} bash slurm/chain.sh {words[0]}")
        )
    if len(words) != 1:
        print(USAGE, end="", file=sys.stderr)
        return 2
    for name, meant in misspelt(os.environ).items():
        print(f"chain.sh: warning: no chain reads {plain(name)}, which is set; did you mean {meant}?", file=sys.stderr)
    benchmark, dry_run = words[0], os.environ.get("DRY_RUN") == "1"
    by_slurm = has_scripts() if dry_run else shutil.which("sbatch")
    launcher = os.environ.get("LAUNCHER") or ("slurm" if by_slurm else "local")
    if launcher not in ("local", "slurm"):
        raise UserError(plain(f"LAUNCHER={launcher}: slurm or local was expected"))
    site = (
        load_site(saved_variables(benchmark, {*os.environ, *known_names()}, os.environ))
        if launcher == "slurm"
        else Site()
    )
    if launcher == "local" and has_scripts():
        load_site(("RUNS",))  # the folders of the site, where make report and make status look; not its requests
    graph = read_graph(benchmark, site.gpu_type)
    print(plain(graph.summary), flush=True)
    if launcher == "slurm":
        return slurm.submit(graph, site, dry_run)
    if dry_run:
        local.print_plan(graph)
        return 0
    return local.run_here(graph)


def read_graph(benchmark: str, gpu_type: str = "") -> Graph:
    """The chain of a benchmark, with the settings in this process's environment. The stages' variables are added to it.

    Raises:
        UserError: a setting is not valid.
    """
    settings = take_settings(benchmark)
    if isinstance(settings, AtlasSettings):
        return atlas_graph(settings)
    return sample_graph(settings, ask(settings.benchmarks, settings.student, settings.models[1:], gpu_type))


def take_settings(benchmark: str) -> Settings | AtlasSettings:
    prepare_environment()
    read = read_atlas_settings if is_atlas(benchmark) else read_settings
    return read(benchmark, os.environ)
