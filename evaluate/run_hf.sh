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
EOF
}

[[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
(($# >= 2)) || { usage >&2; exit 2; }
model=$1 tasks=$2

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/lib/python.bash
source "$here/../slurm/lib/python.bash"
python=$(choose_python "$(dirname -- "$here")")
# shellcheck source=slurm/lib/launch.bash
source "$here/../slurm/lib/launch.bash"

count=$(processes_here)
command=("$python" "$here/main.py" --model hf --model_args "pretrained=$model" --tasks "$tasks")
((count > 1)) || exec "${command[@]}" "${@:3}"

# The last one to end writes the results; a failure of one ends all.
processes=()
trap 'kill "${processes[@]}" 2>/dev/null || true' EXIT
for ((share = 0; share < count; share++)); do
    "${command[@]}" --shard "$share/$count" --device "$share" "${@:3}" &
    processes+=($!)
done
for _ in "${processes[@]}"; do
    status=0
    wait -n || status=$?
    ((status == 0)) || exit "$status"
done
