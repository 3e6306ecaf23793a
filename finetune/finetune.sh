#!/usr/bin/env bash
# Finetune a student on text fields of a dataset, with one checkpoint per epoch and one process per GPU.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: bash finetune.sh MODEL DATASET PER_DEVICE_BATCH ACCUMULATION LR EPOCHS TASK_TYPE RUN_NAME STORE_DIR WANDB_PROJECT
                        [FLAG ...]

  MODEL      a name in models/, a folder with a model, or a hub id
  DATASET    a datasets folder; the split train of a DatasetDict
  TASK_TYPE  the field to train on: text, cot_tail, error_tail, fundamental_tail, full_tail or all; a mixture
             (text:1,cot_tail:2); or a curriculum (text,cot_tail)
  FLAG ...   flags for finetune.py (see finetune.py --help); if a flag is given twice, the last one counts

Variables, and their defaults:
  NUM_GPUS          number of processes, one per GPU         the number of visible GPUs; without a GPU, one process
  AUTO_BATCH=1      if memory runs out, try again with half the batch and twice the accumulation
  PEFT=lora|qlora   train adapters only
  SAVE_TOTAL_LIMIT  maximum number of checkpoints to keep    all
  WANDB_MODE        online, offline or disabled              offline without WANDB_API_KEY

Checkpoints go to STORE_DIR/RUN_NAME. If this run has checkpoints there already, training resumes from the last one.
SIGUSR1 and SIGTERM save a checkpoint and end with status 75; the same command then continues. In a Slurm job with
several nodes, all nodes train.
example: bash finetune.sh bigscience/bloomz-7b1 ../enhance/CREAK 8 1 6e-06 10 cot_tail CREAK_bloomz_cot ./store test
EOF
}

[[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
(($# >= 10)) || { usage >&2; exit 2; }

# shellcheck source=slurm/python.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/../slurm/python.bash"
become finetune.sh finetune-here "$@"
