#!/usr/bin/env bash
# Finetune a student on one text field of a dataset, a checkpoint an epoch.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: bash finetune.sh MODEL DATASET PER_DEVICE_BATCH ACCUMULATION LR EPOCHS TASK_TYPE RUN_NAME STORE_DIR WANDB_PROJECT
                        [FLAG ...]

  MODEL      a name in models/, a folder with a model, or a hub id
  DATASET    a datasets folder; of a DatasetDict the split train
  TASK_TYPE  the field that is trained on: text, cot_tail, error_tail, fundamental_tail, full_tail, all
  FLAG ...   go to finetune.py (finetune.py --help); the last of a flag counts

Checkpoints go to STORE_DIR/RUN_NAME. When some of this run are there already, training resumes from the last.
example: bash finetune.sh bigscience/bloomz-7b1 ../enhance/CREAK 8 1 6e-06 10 cot_tail CREAK_bloomz_cot ./store test
EOF
}

[[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
(($# >= 10)) || { usage >&2; exit 2; }
model=$1 dataset=$2 batch=$3 accumulation=$4 learning_rate=$5 epochs=$6 task_type=$7 run_name=$8 store_dir=$9
export WANDB_PROJECT=${10}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[[ -x $python ]] || python=python3

flags=(
    --model_name_or_path "$model"
    --dataset_name "$dataset"
    --per_device_train_batch_size "$batch"
    --gradient_checkpointing true
    --gradient_accumulation_steps "$accumulation"
    --learning_rate "$learning_rate" --lr constant
    --do_train --num_train_epochs "$epochs"
    --task_type "$task_type"
    --max_source_length 2048
    --run_name "$run_name"
    --output_dir "$store_dir/$run_name"
    --save_strategy epoch
    --logging_steps 8
    --fp16
    --report_to wandb
)
exec "$python" "$here/finetune.py" "${flags[@]}" "${@:11}"
