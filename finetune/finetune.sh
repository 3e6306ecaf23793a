#!/usr/bin/env bash
# Finetune a student on one text field of a dataset, a checkpoint an epoch, in as many processes as there are GPUs.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: bash finetune.sh MODEL DATASET PER_DEVICE_BATCH ACCUMULATION LR EPOCHS TASK_TYPE RUN_NAME STORE_DIR WANDB_PROJECT
                        [FLAG ...]

  MODEL      a name in models/, a folder with a model, or a hub id
  DATASET    a datasets folder; of a DatasetDict the split train
  TASK_TYPE  the field that is trained on: text, cot_tail, error_tail, fundamental_tail, full_tail, all; a mixture
             (text:1,cot_tail:2) or a curriculum (text,cot_tail)
  FLAG ...   go to finetune.py (finetune.py --help); the last of a flag counts

Variables:
  NUM_GPUS          processes on this machine, one a GPU     the GPUs that are seen; without any, one process
  AUTO_BATCH=1      out of memory, try again with half the batch and twice the accumulation
  PEFT=lora|qlora   train adapters only
  SAVE_TOTAL_LIMIT  keep so many checkpoints                 all
  WANDB_MODE        online, offline or disabled              offline without WANDB_API_KEY

Checkpoints go to STORE_DIR/RUN_NAME. When some of this run are there already, training resumes from the last. SIGUSR1
and SIGTERM save one and end with 75: the same command goes on. Within a Slurm job of several nodes, all of them train.
example: bash finetune.sh bigscience/bloomz-7b1 ../enhance/CREAK 8 1 6e-06 10 cot_tail CREAK_bloomz_cot ./store test
EOF
}

[[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
(($# >= 10)) || { usage >&2; exit 2; }

# shellcheck source=slurm/python.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/../slurm/python.bash"
become finetune.sh finetune-here "$@"
