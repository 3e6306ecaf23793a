#!/usr/bin/env bash
# Score any causal model that transformers loads on one or more tasks.
set -euo pipefail

usage() {
    cat <<EOF
usage: bash $(basename -- "$0") MODEL TASK[,TASK ...] [FLAG ...]

  MODEL     a name in models/, a folder (a checkpoint-N too), or a hub id
  TASK      creak, ecqa, strategy_qa, mmlu, mmlu_stem, mmlu_anatomy, another file in lm_eval/tasks/ or benchmarks/,
            a class in such a file, 'mmlu_*' for all that match, or one of lm-eval's own
  FLAG ...  go to main.py: --batch_size, --output_path, --checkpoints, ... (main.py --help)

  NUM_GPUS  processes that share the questions, a GPU each (default: all that are seen); without a GPU they share the CPU

example: bash $(basename -- "$0") smollm2-135m creak --limit 100
EOF
}

[[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
(($# >= 2)) || { usage >&2; exit 2; }

# shellcheck source=slurm/python.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/../slurm/python.bash"
become "$(basename -- "$0")" evaluate-shares "$@"
