#!/usr/bin/env bash
# Score any causal model that transformers loads on one or more tasks.
set -euo pipefail

usage() {
    cat <<EOF
usage: bash $(basename -- "$0") MODEL TASK[,TASK ...] [FLAG ...]

  MODEL     a name in models/, a folder (a checkpoint-N too), or a hub id
  TASK      creak, ecqa, strategy_qa, or another file in lm_eval/tasks/ or benchmarks/
  FLAG ...  go to main.py: --batch_size, --output_path, --checkpoints, ... (main.py --help)
EOF
}

[[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
(($# >= 2)) || { usage >&2; exit 2; }
model=$1 tasks=$2

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[[ -x $python ]] || python=python3

exec "$python" "$here/main.py" --model hf --model_args "pretrained=$model" --tasks "$tasks" "${@:3}"
