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
from teacherlm.core.errors import UserError

USAGE = """\
usage: [VARIABLE=value ...] bash slurm/chain.sh BENCHMARK      (or: make BENCHMARK VARIABLE=value ...)
       DATA_DIR=FOLDER [...] bash slurm/chain.sh atlas-SETTING  (or: make atlas-SETTING ...; docs/how-to/atlas.md)

  variable       meaning                                                               default

  STUDENT        model to finetune: a name in models/, a folder, or a hub id           MODEL, or smollm2-135m
  TEACHER        model that explains; or field:NAME, explanations in the data          the student
  TASK           field to train on: text, cot_tail, error_tail, fundamental_tail,      cot_tail
                 full_tail or all; text:1,cot_tail:2 mixes fields (each sample once as text and twice as cot_tail per
                 epoch); text,cot_tail trains on the fields one after the other in each epoch
  LIMIT          maximum number of training samples                                    all
  EPOCHS         number of epochs of finetuning                                        10
  SEED           seed of the teacher's sampling and of finetuning                      0
  NUM_TOKENS     maximum number of tokens per explanation                              the teacher's YAML
  TEMPERATURE    temperature of the teacher's sampling; 0 takes the likeliest token    1
  MAX_FAILURES   maximum number of samples without an explanation                      0
  FILTER         flags whose samples are dropped: empty, cut, repeats, copies,         none
                 language, contradicts, duplicate, overlap (docs/reference/quality-flags.md describes them)
  SHARDS         number of shards of the teacher's work, each with a job               1; locally, one per GPU
  BATCH, ACCUMULATION, LEARNING_RATE    settings of finetuning                         the student's YAML
  TOKENIZATION   how question and letter are tokenized for scoring: auto, apart        auto: as in the student's
                 or joint                                                              training
  RUNS           folder for all outputs                                                runs
  BENCHMARK_DATA (CREAK_DATA, ...)      folder with the benchmark's files              the hub

  LAUNCHER       slurm or local                                                        slurm if there is sbatch
  NUM_GPUS       with LAUNCHER=local, number of tasks at the same time, one per GPU    all visible GPUs
  CONTAINER      image in which the stages run (docs/how-to/container.md)                     none: .venv
  DRY_RUN=1      print what would be submitted or, with LAUNCHER=local, started; nothing is written
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
    """The chain of a benchmark, with the settings in this process's environment. The stages' variables are added to it.

    Raises:
        UserError: a setting is not valid.
    """
    settings = take_settings(benchmark)
    if isinstance(settings, AtlasSettings):
        return atlas_graph(settings)
    return sample_graph(settings, ask(benchmark, settings.student, settings.teacher, gpu_type))


def take_settings(benchmark: str) -> Settings | AtlasSettings:
    prepare_environment()
    read = read_atlas_settings if is_atlas(benchmark) else read_settings
    return read(benchmark, os.environ)
