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

INTERRUPTED=75 OUT_OF_MEMORY=76 # exit codes of finetune.py

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
    (($# >= 10)) || { usage >&2; exit 2; }
    local batch=$3 accumulation=$4 status
    export WANDB_PROJECT=${10}
    here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
    # shellcheck source=teacherlm/python.bash
    source "$here/../teacherlm/python.bash"
    python=$(choose_python "$(dirname -- "$here")")
    gpus=${NUM_GPUS:-$(seen_gpus)}
    [[ $gpus =~ ^[0-9]+$ ]] || { echo "finetune.sh: error: NUM_GPUS=$gpus: a number was expected" >&2; exit 2; }

    while true; do
        flags=(
            --model_name_or_path "$1"
            --dataset_name "$2"
            --per_device_train_batch_size "$batch"
            --gradient_checkpointing true
            --gradient_accumulation_steps "$accumulation"
            --learning_rate "$5" --lr constant
            --do_train --num_train_epochs "$6"
            --task_type "$7"
            --max_source_length 2048
            --run_name "$8"
            --output_dir "$9/$8"
            --save_strategy epoch
            ${PEFT:+--peft "$PEFT"}
            ${SAVE_TOTAL_LIMIT:+--save_total_limit "$SAVE_TOTAL_LIMIT"}
            --logging_steps 8
            --report_to wandb
            "${@:11}"
        )
        status=0
        launch || status=$?
        ((status == OUT_OF_MEMORY)) && [[ ${AUTO_BATCH:-0} == 1 ]] && ((batch > 1 && batch % 2 == 0)) || exit "$status"
        batch=$((batch / 2)) accumulation=$((accumulation * 2))
        echo "finetune.sh: trying again with a batch of $batch and $accumulation accumulated"
    done
}

seen_gpus() {
    command -v nvidia-smi >/dev/null || { echo 0; return; }
    "$python" -c 'import torch; print(torch.cuda.device_count())'
}

# One process as it is; several with the variables that torch.distributed reads.
launch() {
    if ((${SLURM_NNODES:-1} > 1)); then
        launch_on_nodes
    elif ((gpus > 1)); then
        launch_here
    else
        "$python" "$here/finetune.py" "${flags[@]}" &
        await $!
    fi
}

launch_here() {
    local pids=() rank
    export WORLD_SIZE=$gpus MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-$(free_port)}
    for ((rank = 0; rank < gpus; rank++)); do
        RANK=$rank LOCAL_RANK=$rank "$python" "$here/finetune.py" "${flags[@]}" &
        pids+=($!)
    done
    await "${pids[@]}"
}

free_port() {
    "$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

# srun starts a process a GPU on each node; each finds its rank in Slurm's variables.
launch_on_nodes() {
    ((gpus)) || gpus=1 # a process on each node's CPU
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))} WORLD_SIZE=$((SLURM_NNODES * gpus))
    # shellcheck disable=SC2016  # the variables are those of the processes that srun starts
    srun --ntasks="$WORLD_SIZE" --ntasks-per-node="$gpus" --kill-on-bad-exit=1 \
        bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' _ "$python" "$here/finetune.py" "${flags[@]}" &
    await $!
}

# Wait for all of the processes; hand signals on to them; when one fails, end the others. Returns the first bad status.
await() {
    local status=0 one pid left
    running=("$@")
    trap 'kill -USR1 "${running[@]}" 2>/dev/null' USR1
    trap 'kill -TERM "${running[@]}" 2>/dev/null' TERM INT
    while ((${#running[@]})); do
        sleep 0.2 &
        wait $! || true # a signal ends the waiting, and is handled now
        left=()
        for pid in "${running[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then
                left+=("$pid")
                continue
            fi
            one=0
            wait "$pid" || one=$?
            if ((one && status == 0)); then
                status=$one
                ((one == INTERRUPTED)) || kill "${running[@]}" 2>/dev/null || true
            fi
        done
        running=("${left[@]}")
    done
    trap - USR1 TERM INT
    return "$status"
}

main "$@"
