#!/usr/bin/env bash
# Score any causal model that transformers loads on one or more tasks.
set -euo pipefail

usage() {
    cat <<EOF
usage: bash $(basename -- "$0") MODEL TASK[,TASK ...] [FLAG ...]

  MODEL     a name in models/, a folder (such as a checkpoint-N), or a hub id
  TASK      creak, ecqa, strategy_qa, mmlu, mmlu_stem, mmlu_anatomy, any other file in lm_eval/tasks/ or benchmarks/,
            a class in such a file, a pattern such as 'mmlu_*', or a task of the lm-eval library
  FLAG ...  flags for main.py: --batch_size, --output_path, --checkpoints, ... (see main.py --help)

  NUM_GPUS  number of processes, which split the questions and use one GPU each (default: the number of visible GPUs);
            without a GPU they use the CPU

example: bash $(basename -- "$0") smollm2-135m creak --limit 100
EOF
}

[[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
(($# >= 2)) || { usage >&2; exit 2; }

# shellcheck source=slurm/python.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/../slurm/python.bash"
become "$(basename -- "$0")" evaluate-shards "$@"
