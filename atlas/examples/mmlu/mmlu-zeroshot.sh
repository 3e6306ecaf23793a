#!/usr/bin/env bash
#SBATCH --job-name=mmlu-zeroshot
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=10
#SBATCH --time=8:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# The zero-shot experiment: a released ATLAS answers MMLU without training (Izacard et al. 2022, section 4.3).
set -euo pipefail

usage() {
    cat <<EOF
usage: DATA_DIR=FOLDER [VARIABLE=value ...] bash examples/mmlu/mmlu-zeroshot.sh [FLAG ...]
       DATA_DIR=FOLDER [VARIABLE=value ...] sbatch [...] examples/mmlu/mmlu-zeroshot.sh [FLAG ...]      from atlas/

$VARIABLES

Afterwards: python evaluation_scripts/evaluate_mmlu_predictions.py \\
    --predictions_path DATA_DIR/experiments/EXPERIMENT_NAME/combined_test-step-0.jsonl \\
    --gold_path DATA_DIR/data/mmlu_data/5-shot-multitask/combined_test.jsonl

example: DATA_DIR=/data/atlas SIZE=base bash examples/mmlu/mmlu-zeroshot.sh
EOF
}

main() {
    local here
    here=$(dirname -- "${BASH_SOURCE[0]}")
    # A Slurm job runs a copy of this script in another folder. Slurm knows the path of the original.
    [[ -f $here/experiment.bash ]] || here=$(scontrol show job "${SLURM_JOB_ID:?this script is not in its folder}" | sed -n 's|^ *Command=\(/.*/examples/mmlu\)/mmlu-.*|\1|p')
    # shellcheck source=atlas/examples/mmlu/experiment.bash
    source "$here/experiment.bash"
    [[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
    [[ -n ${DATA_DIR:-} ]] || { usage >&2; exit 2; }
    start_experiment zeroshot "$@"
}

main "$@"
