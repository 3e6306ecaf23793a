"""The variables that people set: of a chain, of single targets of make, of a site.

This is the only list of them. `chain.sh --help` and docs/reference/variables.md are made from it, and make refuses a
variable that is not in it. The Makefile runs this file before anything is installed, so that only the standard library
is imported here.
"""

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
CHAIN, RUNNING, FINETUNING, ATLAS = "What a chain makes", "How it runs", "Finetuning", "ATLAS on MMLU"
MAKE, SITE, PLACES = "Single targets of make", "A site's settings", "Folders, keys and servers"
GROUPS = {
    CHAIN: "`make creak`, `make NAME` for any `benchmarks/NAME.yaml`, `bash slurm/chain.sh NAME`, and `make download`.",
    RUNNING: "All chains: those of a benchmark and those of ATLAS.",
    FINETUNING: "`finetune/finetune.sh`, and the stage `finetune` of a chain.",
    ATLAS: "`make atlas-SETTING`, and the scripts in `atlas/examples/`.",
    MAKE: "Each is read by the targets that its meaning names.",
    SITE: "`slurm/site.env` sets them, or the file that `SITE` names; `make site` writes a first version of it.",
    PLACES: "All programs.",
}
"""The headings, and what reads the variables below them."""


class Variable(NamedTuple):
    name: str
    meaning: str
    default: str
    group: str


VARIABLES = (
    Variable("STUDENT", "the model that is finetuned: a name in models/, a folder, or a hub id", "smollm2-135m", CHAIN),
    Variable("MODEL", "another name of STUDENT, read only where STUDENT is not set", "", CHAIN),
    Variable(
        "TEACHER",
        "the model that explains: as STUDENT, or the address of a server (http://host:port/model); field:NAME takes "
        "explanations that the data has",
        "the student",
        CHAIN,
    ),
    Variable(
        "TEACHER_KIND",
        "the model that writes one kind of explanation, or several with commas between them, whose texts are mixed; "
        "the variable has the kind's name: TEACHER_COT, TEACHER_ERROR, TEACHER_FUNDAMENTAL, ...",
        "TEACHER",
        CHAIN,
    ),
    Variable(
        "TASK",
        "the field that is trained on: text, cot_tail, error_tail, fundamental_tail, full_tail or all; "
        "text:1,cot_tail:2 mixes fields, each sample once as text and twice as cot_tail per epoch; text,cot_tail "
        "trains on the fields one after the other in each epoch",
        "cot_tail",
        CHAIN,
    ),
    Variable(
        "TRAIN",
        "the benchmarks whose training samples are trained on: creak,ecqa:0.5,strategy_qa:max1000; after a colon, the "
        "number of times that an epoch has each sample, or the maximum number of samples that an epoch has",
        "the chain's benchmark",
        CHAIN,
    ),
    Variable("TEST", "the benchmarks that are scored: creak,strategy_qa,mmlu", "the chain's benchmark", CHAIN),
    Variable("PROMPTS", "what the teacher is asked: a name in prompts/, or a path", "teacherlm", CHAIN),
    Variable("LIMIT", "maximum number of training samples of each benchmark", "all", CHAIN),
    Variable("EPOCHS", "number of epochs of finetuning", "10", CHAIN),
    Variable("SEED", "seed of the teacher's sampling and of finetuning; fuzz: seed of the damages", "0", CHAIN),
    Variable("NUM_TOKENS", "maximum number of tokens that the teacher writes per text", "the teacher's YAML", CHAIN),
    Variable("TEMPERATURE", "the teacher's temperature; 0 takes the likeliest token", "1", CHAIN),
    Variable(
        "CHAT",
        "true: the teacher gets its prompts as conversations; false: it completes them; auto: as conversations if its "
        "tokenizer has a chat template",
        "the teacher's YAML, otherwise auto",
        CHAIN,
    ),
    Variable(
        "STUDENT_CHAT",
        "true: the student is trained and scored through its chat template, a sample as a conversation; false: on "
        "plain texts, as in the paper",
        "finetune.chat of the student's YAML, otherwise false",
        CHAIN,
    ),
    Variable("NUM_COMPLETIONS", "number of texts that the teacher writes per sample and kind", "1", CHAIN),
    Variable(
        "EXPLANATIONS",
        "which of these texts are trained on: first; all (a sample per text); each_epoch (another text in each epoch); "
        "best (the one with the highest score)",
        "first",
        CHAIN,
    ),
    Variable(
        "SCORER",
        "EXPLANATIONS=best: whose log-likelihood of the right answer is the score, student or teacher",
        "student",
        CHAIN,
    ),
    Variable("MAX_FAILURES", "maximum number of samples that may stay without an explanation", "0", CHAIN),
    Variable(
        "ENGINE",
        "what computes a local teacher's texts: transformers, vllm, serve (a server that the job starts with the "
        "command `serve` of the model's YAML), or auto, which is vllm where it is installed, there is a GPU, and it "
        "knows the teacher; what one engine has begun is continued with it",
        "auto",
        CHAIN,
    ),
    Variable(
        "FILTER",
        "flags whose samples are dropped: empty, cut, repeats, copies, language, contradicts, duplicate, overlap; "
        "several with commas (docs/reference/quality-flags.md)",
        "none",
        CHAIN,
    ),
    Variable("SHARDS", "number of shards of the teacher's work, each with a job", "1; locally, one per GPU", CHAIN),
    Variable("BATCH", "samples per batch and GPU in finetuning", "the student's YAML", CHAIN),
    Variable("ACCUMULATION", "batches per step in finetuning", "the student's YAML", CHAIN),
    Variable("LEARNING_RATE", "learning rate of finetuning", "the student's YAML", CHAIN),
    Variable(
        "TOKENIZATION",
        "how question and choice are tokenized for scoring: auto, apart or joint",
        "auto: as in the student's training",
        CHAIN,
    ),
    Variable(
        "ANSWER",
        "how students answer when they are scored: letter (the log-likelihood of each choice's letter), generate (the "
        "answer that they write), both, or auto, which is letter, and generate for a benchmark without choices",
        "auto",
        CHAIN,
    ),
    Variable(
        "REPORT_TO", "where finetuning sends its losses beside log.jsonl: none, wandb or tensorboard", "none", CHAIN
    ),
    Variable("WANDB_PROJECT", "the project of wandb that gets them", "teacherlm", CHAIN),
    Variable(
        "ENHANCE_FLAGS",
        "further flags of enhance.py, as in a shell: ENHANCE_FLAGS='--top_p 0.9'; outputs go to folders of their own",
        "",
        CHAIN,
    ),
    Variable("FINETUNE_FLAGS", "further flags of finetune.py, in the same way", "", CHAIN),
    Variable("EVALUATE_FLAGS", "further flags of evaluate/main.py, in the same way", "", CHAIN),
    Variable(
        "BENCHMARK_DATA",
        "a folder with the benchmark's files; the variable has the benchmark's name: CREAK_DATA, ECQA_DATA, ...",
        "the hub",
        CHAIN,
    ),
    Variable("RUNS", "the folder for all outputs; compare: the folders of the runs to compare", "runs", RUNNING),
    Variable("LAUNCHER", "slurm, or local for this machine", "slurm where there is sbatch", RUNNING),
    Variable("DRY_RUN", "1: print what would be submitted or started, and make nothing", "", RUNNING),
    Variable(
        "NUM_GPUS",
        "number of GPUs to use on this machine; without a GPU, number of processes",
        "all visible GPUs",
        RUNNING,
    ),
    Variable("CONTAINER", "the image in which the stages run (docs/how-to/container.md)", "none: .venv", RUNNING),
    Variable("APPTAINER_BIND", "further folders that the image sees, in Apptainer's own form", "", RUNNING),
    Variable("PYTHON", "the Python that runs the stages", ".venv, or python3", RUNNING),
    Variable("SITE", "the file with the site's settings; make site writes it", "slurm/site.env", RUNNING),
    Variable(
        "SIGNAL_SECONDS", "a job is warned this many seconds before its time limit, and then saves", "180", RUNNING
    ),
    Variable("PEFT", "lora or qlora: train adapters only", "all weights", FINETUNING),
    Variable(
        "AUTO_BATCH", "1: out of memory, try again with half the batch and twice the accumulation", "", FINETUNING
    ),
    Variable("SAVE_TOTAL_LIMIT", "maximum number of checkpoints that are kept", "all", FINETUNING),
    Variable("WANDB_MODE", "online, offline or disabled", "offline without a key", FINETUNING),
    Variable("DATA_DIR", "the folder with the questions, models and indices; it has to be set", "", ATLAS),
    Variable("SIZE", "size of the released checkpoint and index: base, large, xl or xxl", "xl", ATLAS),
    Variable(
        "EXPERIMENT_NAME", "the folder of the results", "SIZE-mmlu-SETTING, in a Slurm job with its number first", ATLAS
    ),
    Variable("MODEL_PATH", "another checkpoint, or none", "DATA_DIR/models/atlas/SIZE", ATLAS),
    Variable("INDEX_PATH", "another index", "DATA_DIR/indices/atlas/wiki/SIZE", ATLAS),
    Variable("PASSAGES", "files of passages (JSON lines) that are indexed in place of an index", "", ATLAS),
    Variable("READER", "the T5", "google/t5-SIZE-lm-adapt", ATLAS),
    Variable("RETRIEVER", "the encoder", "facebook/contriever", ATLAS),
    Variable("PRECISION", "fp32, fp16 or bf16", "bf16", ATLAS),
    Variable("DOMAIN", "of the 5-shot setting, only this domain", "all", ATLAS),
    Variable("MMLU_DATA", "the archive or folder of MMLU, from which the questions are prepared", "", ATLAS),
    Variable("FLAGS", "further flags of atlas/train.py or atlas/evaluate.py; the last of a flag counts", "", ATLAS),
    Variable("PLACES", "of make atlas-demo: number of made-up places", "400", ATLAS),
    Variable("READER_STEPS", "of make atlas-demo: steps of the reader's training", "450", ATLAS),
    Variable("RETRIEVER_STEPS", "of make atlas-demo: steps of the retriever's training", "60", ATLAS),
    Variable("RUN", "report: the folder of one run", "all runs", MAKE),
    Variable("BENCHMARK", "report: only this benchmark's runs; download: the benchmark", "", MAKE),
    Variable("OPEN", "report, compare: 1 opens the page in a browser", "", MAKE),
    Variable("STAGE", "logs: only this stage; perf: the stage that is measured", "", MAKE),
    Variable(
        "CHAIN",
        "status, logs, cancel: a part of the chain's path below RUNS, such as limit-48 or cot_tail",
        "all chains",
        MAKE,
    ),
    Variable("IMAGE", "container, container-test: cpu or gpu", "cpu", MAKE),
    Variable(
        "OUTPUT",
        "container: the file of the image; check-gpu: the file of the report",
        "teacherlm-IMAGE.sif; gpu-check.json",
        MAKE,
    ),
    Variable("DEBIAN_MIRROR", "container: where the base system comes from", "that of this machine's apt", MAKE),
    Variable("A", "container-diff: one image", "", MAKE),
    Variable("B", "container-diff: the other image", "", MAKE),
    Variable("BASE_PYTHON", "install: the Python from which .venv is made", "the first of 3.11 to 3.14", MAKE),
    Variable("TORCH", "install: which build of torch, cpu or cuda", "cuda where there is a GPU", MAKE),
    Variable("INSTALLER", "install: pip, or uv, which has to be there", "pip", MAKE),
    Variable("REPORT", "docs: the page of the demo's report that the site shows", "that of make demo", MAKE),
    Variable("TEST_WORKERS", "test, test-fast and others: number of tests at a time", "3 in test, else 2", MAKE),
    Variable("WHOLE", "test-cluster: 1 runs the slow tests too", "", MAKE),
    Variable("SUITE", "test-newcomer: bookworm, trixie or forky", "trixie", MAKE),
    Variable("ONLY", "fuzz, prove: only subjects or tests with this word in their names", "all", MAKE),
    Variable("COUNT", "fuzz: how many times each subject is damaged", "10000", MAKE),
    Variable("VENV", "the folder of make install's environment; leave it as it is", ".venv", MAKE),
    Variable("ACCOUNT", "the account that jobs are charged to", "", SITE),
    Variable("QOS", "the quality of service of jobs", "", SITE),
    Variable("CONSTRAINT", "features that nodes need to have", "", SITE),
    Variable("PARTITION", "the partition of jobs with GPUs", "Slurm's default", SITE),
    Variable("CPU_PARTITION", "the partition of all other jobs", "Slurm's default", SITE),
    Variable("GPU_TYPE", "the type of GPU: a100 asks for --gres=gpu:a100:N", "any", SITE),
    Variable("SBATCH_ARGS", "an array: further arguments of sbatch for all jobs", "()", SITE),
    Variable("CPU_ARGS", "an array: further arguments for jobs without a GPU", "()", SITE),
    Variable("ENHANCE_ARGS", "an array: further arguments for the stage enhance", "()", SITE),
    Variable("FINETUNE_ARGS", "an array: further arguments for the stage finetune", "()", SITE),
    Variable("EVALUATE_ARGS", "an array: further arguments for the stage evaluate", "()", SITE),
    Variable("ATLAS_ARGS", "an array: further arguments for the jobs of ATLAS", "()", SITE),
    Variable("MODULES", "an array: the modules that each job loads first", "()", SITE),
    Variable("HF_HOME", "the folder of models and datasets from the hub", "~/.cache/huggingface", PLACES),
    Variable("HF_TOKEN", "the key of the hub, for models that ask for one", "", PLACES),
    Variable("HF_ENDPOINT", "the address of the hub or of a mirror", "https://huggingface.co", PLACES),
    Variable("HF_HUB_OFFLINE", "1: ask no server; jobs on Slurm have it set", "", PLACES),
    Variable("TEACHERLM_CACHE", "the folder of what this project makes once and keeps", "~/.cache/teacherlm", PLACES),
    Variable(
        "TEACHERLM_WEIGHTS", "the folder of the teachers that are on no hub (models/teacherlm-*.yaml)", "", PLACES
    ),
    Variable("OPENAI_API_KEY", "the key of the server that TEACHER names", "", PLACES),
    Variable("TEACHERLM_KEY_OVER_HTTP", "1: send a key to a server without encryption", "", PLACES),
    Variable("WANDB_API_KEY", "the key of wandb", "", PLACES),
    Variable("WANDB_BASE_URL", "the address of wandb's server", "https://api.wandb.ai", PLACES),
    Variable("WANDB_DIR", "the folder of the runs that wandb keeps", "the folder of the checkpoints", PLACES),
    Variable("OMP_NUM_THREADS", "number of threads of a process", "all processors; in a job, its own", PLACES),
    Variable("CUDA_VISIBLE_DEVICES", "the visible GPUs", "all", PLACES),
)
NAMES = frozenset(one.name for one in VARIABLES)
OF_OTHERS = re.compile(
    "(HF|HUGGINGFACE|TRANSFORMERS|TOKENIZERS|DATASETS|WANDB|CUDA|NVIDIA|NCCL|GLOO|TORCH|TORCHINDUCTOR|PYTORCH|DS|VLLM"
    "|OMP|MKL|OPENBLAS|MALLOC|SLURM|SBATCH|SRUN|APPTAINER|APPTAINERENV|SINGULARITY|PIP|UV|PYTEST|PYTHON|PLAYWRIGHT"
    "|XDG|TEACHERLM|LC|MASTER|CURL|REQUESTS|SSL|ONEDNN)_[A-Z0-9_]+"
    "|V|VERBOSE|MAKE[A-Z_]*|GNUMAKEFLAGS|CC|CXX|[A-Z]+FLAGS|PYTHON[A-Z]+|RANK|LOCAL_RANK|WORLD_SIZE|MODULEPATH|PATH|HOME|PWD|SHELL|TMPDIR|LANG|TERM|COLUMNS|CI|TZ|USER|BROWSER|NO_COLOR|[a-z_]+_proxy|[A-Z]+_PROXY"
)
"""Variables that make itself, compilers, libraries, Slurm and the shell read."""


def data_variable(benchmark: str) -> str:
    """The variable that names a folder with a benchmark's files: creak -> CREAK_DATA, my-claims -> MY_CLAIMS_DATA."""
    name = re.sub(rb"[^A-Za-z0-9]", b"_", os.fsencode(benchmark)).decode("ascii").upper() + "_DATA"
    return f"_{name}" if name[0].isdigit() else name  # no variable begins with a digit


TEACHER_OF = re.compile(r"TEACHER_[A-Z][A-Z0-9_]*")
"""The variables that name the teacher of one kind of explanation."""
KIND = re.compile(r"^ +([a-z][a-z0-9_]*):[ \t]*(?:#.*)?$", re.MULTILINE)
"""A line of a YAML file in prompts/ that begins the description of a kind."""


def teacher_variable(kind: str) -> str:
    """The variable that names the teacher of a kind of explanation: cot -> TEACHER_COT."""
    return f"TEACHER_{kind.upper()}"


def known_names() -> set[str]:
    """All names, and a variable for each benchmark and each kind of explanation of the project and the current folder.

    The YAML of prompts is only searched for what looks like a kind, because no YAML can be read here.
    """
    places = {ROOT, Path()}
    benchmarks = [file for place in places for file in (place / "benchmarks").glob("*.yaml")]
    prompts = [file for place in places for file in (place / "prompts").glob("*.yaml")]
    kinds = {kind for file in prompts for kind in KIND.findall(file.read_text(errors="replace"))}
    names = {*NAMES, *(data_variable(file.stem) for file in benchmarks), *map(teacher_variable, kinds)}
    return names - {"BENCHMARK_DATA", "TEACHER_KIND"}


def complaint(names: Iterable[str]) -> str | None:
    """The error message for the names of variables that make was given, or None. It is one line."""
    known = known_names()
    for name in names:
        if name not in known and not OF_OTHERS.fullmatch(name):
            near = nearest(name, known, 2)
            if TEACHER_OF.fullmatch(name) and not near:
                continue  # a kind of prompts that are elsewhere; the chain knows whether they have it
            meant = f"did you mean {near}?" if near else f"to hand it on to a program, put it first: {name}=... make"
            return f"nothing reads a variable {name}; {meant} (docs/reference/variables.md lists them)"
    return None


def misspelt(variables: Mapping[str, str]) -> dict[str, str]:
    """Names in the environment that are probably misspelt: name -> the variable of a chain that was meant.

    An environment has many names of other programs. A name therefore counts only if it is one edit away from a chain's
    variable that has at least six letters and is not set.
    """
    chains = {one.name for one in VARIABLES if one.group in (CHAIN, RUNNING) and len(one.name) >= 6}
    chains |= {name for name in known_names() if TEACHER_OF.fullmatch(name)}
    strange = [name for name in variables if name not in {*NAMES, *chains} and not OF_OTHERS.fullmatch(name)]
    near = {name: nearest(name, chains - variables.keys(), 1) for name in strange}
    return {name: meant for name, meant in near.items() if meant}


def nearest(name: str, known: Iterable[str], most: int) -> str | None:
    """The known name with the fewest edits, if they are at most `most` and at most half of the name's length."""
    found = min((edits(name.upper(), one), one) for one in known)
    return found[1] if found[0] <= min(most, len(name) // 2) else None


def edits(one: str, other: str) -> int:
    """Number of characters to add, remove, replace, or swap with the next one, to turn a word into the other."""
    rows = [list(range(len(other) + 1))]
    for i, left in enumerate(one, 1):
        row = [i]
        for j, right in enumerate(other, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (left != right)))
            if i > 1 and j > 1 and left == other[j - 2] and one[i - 2] == right:
                row[-1] = min(row[-1], rows[-2][j - 2] + 1)
        rows.append(row)
    return rows[-1][-1]


def listing(*groups: str) -> str:
    """The variables of some groups as --help shows them: name, meaning, default."""
    lines = []
    for group in groups:
        lines.append(f"{group}:")
        for one in VARIABLES:
            if one.group == group:
                meaning = textwrap.wrap(one.meaning, 68)
                lines += [f"  {one.name:16} {meaning[0]:68}  {one.default if len(meaning) == 1 else ''}".rstrip()]
                lines += [f"  {'':16} {line}" for line in meaning[1:-1]]
                lines += [f"  {'':16} {line:68}  {one.default}".rstrip() for line in meaning[1:][-1:]]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    if found := complaint(sys.argv[1:]):
        print(found)
