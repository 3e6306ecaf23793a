"""`teacherlm COMMAND ...`: runs a program of this package by its name."""

import importlib
import sys

from teacherlm.core.errors import UserError
from teacherlm.core.programs import run
from teacherlm.runtime.compat.of_python import exit_code_kept

COMMANDS = {
    "prepare": ("dataset.main", "prepare a benchmark for the teacher, and post-process the teacher's texts"),
    "enhance": ("enhance.main", "let a teacher explain why each answer is right"),
    "merge": ("enhance.merge", "merge the shards of the teacher's texts"),
    "mix": ("enhance.mix", "mix the texts of several teachers for the same samples"),
    "finetune": ("finetune.main", "finetune a student on the texts of a dataset, with a checkpoint per epoch"),
    "finetune-here": ("finetune.launch", "finetune with a process per GPU, like finetune.sh"),
    "sync-wandb": ("finetune.sync_wandb", "send the runs that wandb kept offline"),
    "evaluate": ("scoring.main", "score a model and a student's checkpoints"),
    "evaluate-shards": ("scoring.launch", "score a model with a process per GPU, like run_hf.sh"),
    "score-texts": ("scoring.text_scores", "score the teacher's texts, for EXPLANATIONS=best"),
    "judge": ("dataset.judge", "let a language model judge the teacher's texts, for EXPLANATIONS=best"),
    "table": ("report.table", "print the table of a run"),
    "report": ("report.main", "make the page of a run's folder"),
    "compare": ("report.compare", "make a page and tables that compare runs"),
    "export-lm-eval": ("report.lm_eval_export", "write results in the format of lm-eval"),
    "chain": ("chain.main", "run the stages one after the other, here or as Slurm jobs"),
    "download": ("chain.download", "download what a chain's jobs need, where there is internet"),
    "chain-job": ("chain.job", "run a stage of a submitted chain; slurm/job.sh starts this"),
    "chain-facts": ("chain.facts", "answer a chain's questions about its benchmark and models, in JSON"),
    "steer": ("chain.steer", "show how far the chains on Slurm are, show their logs, or cancel them"),
    "site": ("chain.describe_site", "show the partitions and their limits; write slurm/site.env if there is none"),
    "doctor": ("chain.doctor", "print what this machine has and lacks for each stage"),
    "atlas-train": ("atlas.train", "train a reader on multiple-choice questions, and its retriever with it"),
    "atlas-evaluate": ("atlas.evaluate", "evaluate a reader and its retriever on multiple-choice questions"),
    "atlas-experiment": (
        "atlas.experiment",
        "run an MMLU experiment with a process per GPU, like atlas/examples/mmlu/",
    ),
    "atlas-scores": ("atlas.scores", "print the MMLU table of a run's predictions"),
    "prepare-mmlu": ("atlas.prepare_mmlu", "make the question files of the MMLU experiments"),
    "download-model": ("atlas.download_model", "download a released checkpoint of ATLAS"),
    "download-index": ("atlas.download_index", "download a published index of Wikipedia"),
    "download-corpus": ("atlas.download_corpus", "download a corpus of Wikipedia passages"),
    "made-up-facts": ("atlas.demo.made_up_facts", "make the passages and questions of `make atlas-demo`"),
    "made-up-scores": ("atlas.demo.made_up_scores", "print what `make atlas-demo` learned"),
}
"""Command -> (the module with its `main`, what it does)."""


def main() -> int | None:
    words = sys.argv[1:]
    called = words[1] if words[:1] == ["--called"] and len(words) > 1 else None  # the calling script's name
    words = words[2:] if called else words
    if not words or words[0] in ("-h", "--help"):
        print("usage: teacherlm COMMAND [FLAG ...]      (teacherlm COMMAND --help lists the flags)\n")
        print("\n".join(f"  {name:16} {does}" for name, (_, does) in COMMANDS.items()))
        return 0
    name = words[0]
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; there are: {', '.join(COMMANDS)}")
    sys.argv = [called or f"teacherlm {name}", *words[1:]]
    status: int | None = importlib.import_module(f"teacherlm.{COMMANDS[name][0]}").main()
    return status


def start() -> None:
    with exit_code_kept():
        run(main)


if __name__ == "__main__":
    start()
