"""The experiments on MMLU: the flags of the reference's four settings, and the start of their runs.

Source: Izacard et al. 2022, arXiv 2208.03299, section 4.3. This module needs only the standard library; see
runtime/launcher.py.
"""

import glob
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.interrupts import REQUEUE
from teacherlm.runtime.launcher import launch, processes_here, program, require_number

SETTINGS = ("zeroshot", "5-shot", "5-shot-multi", "full")
DOMAIN_FILE = ".5-shot-train.jsonl"
COMMON = [
    *("--task", "multiple_choice", "--target_maxlength", "16", "--text_maxlength", "512"),
    *("--n_context", "30", "--retriever_n_context", "30", "--per_gpu_batch_size", "1"),
    *("--multiple_choice_train_permutations", "all", "--multiple_choice_eval_permutations", "cyclic"),
    *("--write_results", "--index_mode", "flat"),
]
TRAIN = [
    *("--shuffle", "--train_retriever", "--gold_score_mode", "ppmean"),
    *("--query_side_retriever_training", "--refresh_index", "-1"),
    *("--temperature_gold", "0.1", "--temperature_score", "0.1"),
    *("--use_gradient_checkpoint_reader", "--use_gradient_checkpoint_retriever", "--shard_optim", "--shard_grads"),
    *("--dropout", "0.1", "--lr", "5e-5", "--lr_retriever", "1e-5", "--scheduler", "linear", "--weight_decay", "0.01"),
    *("--log_freq", "4", "--save_freq", "10000000000"),
]
"""The common flags of the three settings that train."""
LONG = ["--eval_freq", "150", "--total_steps", "2000", "--warmup_steps", "50"]
SHORT = ["--eval_freq", "4", "--total_steps", "16", "--warmup_steps", "4"]
END_OF_RUN_SECONDS = 60
"""Slurm ends a run within this number of seconds after its job was requeued."""


@dataclass(frozen=True)
class DataFolder:
    """The folder DATA_DIR with the questions, models, indices and results of the experiments."""

    path: str

    @property
    def questions(self) -> str:
        return f"{self.path}/data/mmlu_data"

    @property
    def experiments(self) -> str:
        return f"{self.path}/experiments"

    def model(self, size: str) -> str:
        return f"{self.path}/models/atlas/{size}"

    def index(self, size: str) -> str:
        return f"{self.path}/indices/atlas/wiki/{size}"

    def domains(self) -> list[str]:
        """The domains with files for the 5-shot setting, sorted; empty before the files are prepared."""
        files = Path(self.questions, "5-shot", "individual_train").glob(f"*{DOMAIN_FILE}")
        names = sorted(file.name.removesuffix(DOMAIN_FILE) for file in files if file.is_file())
        return [name for name in names if re.fullmatch(r"[A-Za-z0-9_-]+", name)]  # other names are not domains of MMLU


USAGE = f"""\
usage: DATA_DIR=FOLDER [VARIABLE=value ...] teacherlm atlas-experiment {{{",".join(SETTINGS)}}} [FLAG ...]
       (the same as atlas/examples/mmlu/mmlu-SETTING.sh, whose --help lists the variables;
       FLAG ... as teacherlm atlas-train --help lists them)

example:
  DATA_DIR=/data/atlas SIZE=base teacherlm atlas-experiment zeroshot
"""


def main() -> int:
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(sys.argv) < 2 or sys.argv[1] not in SETTINGS:
        raise UserError(f"a setting was expected, one of {', '.join(SETTINGS)}, followed by flags")
    setting, more = sys.argv[1], sys.argv[2:]
    if not os.environ.get("DATA_DIR"):
        raise UserError("DATA_DIR is not set; it holds the questions, models and indices (docs/how-to/atlas.md)")
    data = DataFolder(os.environ["DATA_DIR"])
    os.environ["RUNS"] = data.path  # the folder to which an image may write
    processes = processes_here()
    script = program("atlas-evaluate" if setting == "zeroshot" else "atlas-train")
    for flags in runs(setting, data):
        status = launch([*script, *flags, *more], processes)
        if status == REQUEUE:
            queue_again()
        if status:
            return status
    return 0


def runs(setting: str, data: DataFolder) -> list[list[str]]:
    """The flags of each run of a setting. The 5-shot setting has one run per domain, the others have one run."""
    size = os.environ.get("SIZE") or "xl"
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    name = os.environ.get("EXPERIMENT_NAME") or f"{job}-" * bool(job) + f"{size}-mmlu-{setting}"
    common = ["--name", name, "--checkpoint_dir", data.experiments]
    common += ["--precision", os.environ.get("PRECISION") or "bf16"]
    common += ["--reader_model_type", os.environ.get("READER") or f"google/t5-{size}-lm-adapt"]
    common += ["--retriever_model_path", os.environ.get("RETRIEVER") or "facebook/contriever"]
    common += ["--model_path", os.environ.get("MODEL_PATH") or data.model(size), *COMMON]
    if passages := os.environ.get("PASSAGES"):
        common.append("--passages")
        for word in passages.split():
            common += sorted(glob.glob(word)) or [word]
    else:
        common += ["--load_index_path", os.environ.get("INDEX_PATH") or data.index(size)]
    questions = data.questions
    if setting == "zeroshot":
        folder = f"{questions}/5-shot-multitask"
        return [[*common, "--eval_data", f"{folder}/combined_valid.jsonl", f"{folder}/combined_test.jsonl"]]
    if setting != "5-shot":
        folder = f"{questions}/full" if setting == "full" else f"{questions}/5-shot-multitask"
        files = ["--train_data", f"{folder}/train.jsonl"]
        files += ["--eval_data", f"{folder}/combined_valid.jsonl", f"{folder}/combined_test.jsonl"]
        return [[*common, *TRAIN, *files, *LONG]]
    found: list[list[str]] = []
    folder = f"{questions}/5-shot"
    for domain in asked_domains(data):
        flags = ["--checkpoint_dir", f"{data.experiments}/{name}", "--name", domain]
        flags += ["--train_data", f"{folder}/individual_train/{domain}{DOMAIN_FILE}", "--eval_data"]
        flags += [f"{folder}/individual_valid/{domain}.val.jsonl", f"{folder}/individual_test/{domain}.test.jsonl"]
        found.append([*common, *TRAIN, *flags, *SHORT])
    return found


def asked_domains(data: DataFolder) -> list[str]:
    """The domains to run: DOMAIN; else that of the Slurm array index; else all.

    Raises:
        UserError: SLURM_ARRAY_TASK_ID is not a number, or there are no domains.
    """
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    number = require_number("SLURM_ARRAY_TASK_ID", task, 0) if task else None
    if domain := os.environ.get("DOMAIN"):
        return [domain]
    domains = data.domains()
    if not domains:
        raise UserError(
            f"{data.questions}/5-shot: no questions there; make them with prepare_mmlu.py, docs/how-to/atlas.md"
        )
    return domains if number is None else domains[number : number + 1]


def queue_again() -> None:
    """Requeue a Slurm job that stopped before its time limit, so that it continues later. The job of a chain does this
    itself."""
    if os.environ.get("CHAIN_BENCHMARK") or not os.environ.get("SLURM_JOB_ID"):
        return
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", f"{job}_{task}" if task else job])
    time.sleep(END_OF_RUN_SECONDS)
