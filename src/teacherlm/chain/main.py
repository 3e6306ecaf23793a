"""The chain: prepare, enhance, merge, finetune, evaluate, report; on this machine, or as Slurm jobs that wait for each
other. What is done and unchanged is skipped."""

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
from teacherlm.core.errors import UserError

USAGE = """\
usage: [VARIABLE=value ...] bash slurm/chain.sh BENCHMARK      (or: make BENCHMARK VARIABLE=value ...)
       DATA_DIR=FOLDER [...] bash slurm/chain.sh atlas-SETTING  (or: make atlas-SETTING ...; docs/how-to/atlas.md)

  STUDENT        the model that is finetuned: a name in models/, a folder, a hub id    MODEL, or smollm2-135m
  TEACHER        the model that explains; or explanations that are there, field:NAME    the student
  TASK           what is trained on: text, cot_tail, error_tail, fundamental_tail, full_tail, all    cot_tail
                 mixed, with how often an epoch has each sample: text:1,cot_tail:2; in this order: text,cot_tail
  LIMIT          the first so many training samples only                               all
  EPOCHS         of finetuning                                                         10
  SEED           of the teacher's draws and of finetuning                              0
  NUM_TOKENS     the teacher's, at most                                                the teacher's YAML
  TEMPERATURE    the teacher's; 0 takes the likeliest token                            1
  MAX_FAILURES   so many samples may stay without an explanation                       0
  FILTER         drops samples with these flags: empty, cut, repeats, copies, language, contradicts, duplicate, overlap
                 (docs/reference/quality-flags.md says how they are found)                              none
  SHARDS         so many parts the teacher's work is cut into, a job each              1; here, one a GPU
  BATCH, ACCUMULATION, LEARNING_RATE    of finetuning                                  the student's YAML
  TOKENIZATION   of question and letter when they are scored: auto, apart or joint     auto: as the student was trained
  RUNS           the folder under which everything goes                                runs
  BENCHMARK_DATA (CREAK_DATA, ...)      a folder with the benchmark's files            the hub

  LAUNCHER       slurm or local                                                        slurm where there is sbatch
  NUM_GPUS       here: so many tasks at once, a GPU each                               the GPUs that are seen
  CONTAINER      an image in which the stages run (docs/how-to/container.md)                  none: .venv
  DRY_RUN=1      print what would be submitted, or with LAUNCHER=local started; nothing is made
"""


def main() -> int:
    words = sys.argv[1:]
    if words in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(words) != 1:
        print(USAGE, end="", file=sys.stderr)
        return 2
    benchmark, dry_run = words[0], os.environ.get("DRY_RUN") == "1"
    by_slurm = has_scripts() if dry_run else shutil.which("sbatch")
    launcher = os.environ.get("LAUNCHER") or ("slurm" if by_slurm else "local")
    if launcher not in ("local", "slurm"):
        raise UserError(plain(f"LAUNCHER={launcher}: slurm or local was expected"))
    site = load_site(saved_variables(benchmark)) if launcher == "slurm" else Site()
    graph = read_graph(benchmark, site.gpu_type)
    print(plain(graph.summary), flush=True)
    if launcher == "slurm":
        return slurm.submit(graph, site, dry_run)
    if dry_run:
        local.print_plan(graph)
        return 0
    return local.run_here(graph)


def read_graph(benchmark: str, gpu_type: str = "") -> Graph:
    """The chain of that name, with the settings of this process's environment, which gets what the stages need.

    Raises:
        UserError: a setting is not what it should be.
    """
    settings = take_settings(benchmark)
    if isinstance(settings, AtlasSettings):
        return atlas_graph(settings)
    return sample_graph(settings, ask(benchmark, settings.student, settings.teacher, gpu_type))


def take_settings(benchmark: str) -> Settings | AtlasSettings:
    prepare_environment()
    read = read_atlas_settings if is_atlas(benchmark) else read_settings
    return read(benchmark, os.environ)
