# shellcheck shell=bash
# Start a script in one process, in one for each GPU of this machine, or in those of a Slurm job's nodes; sourced by the
# scripts that do. `python` and `gpus` (processes on each machine) are theirs; slurm/lib/python.bash is sourced before.

# How many processes a machine gets: NUM_GPUS, or one for each GPU that is seen; 0 is one on the CPU.
processes_here() {
    local gpus=${NUM_GPUS:-$(seen_gpus)}
    require_number NUM_GPUS "$gpus" 0
    echo "$gpus"
}

seen_gpus() {
    command -v nvidia-smi >/dev/null || { echo 0; return; }
    "$python" -P -c 'import torch; print(torch.cuda.device_count())'
}

# One process as it is; several with the variables that torch.distributed reads.
launch() { # SCRIPT [FLAG ...]
    require_number SLURM_NNODES "${SLURM_NNODES:-1}" 1
    if ((${SLURM_NNODES:-1} > 1)); then
        launch_on_nodes "$@"
    elif ((gpus > 1)); then
        launch_here "$@"
    else
        "$python" "$@" &
        await $!
    fi
}

launch_here() { # SCRIPT [FLAG ...]
    local pids=() rank
    export WORLD_SIZE=$gpus MASTER_ADDR=127.0.0.1 MASTER_PORT=${MASTER_PORT:-$(free_port 127.0.0.1)}
    for ((rank = 0; rank < gpus; rank++)); do
        RANK=$rank LOCAL_RANK=$rank "$python" "$@" &
        pids+=($!)
    done
    await "${pids[@]}"
}

# A port that is free on this machine; which one, the system draws.
free_port() { # ADDRESS
    "$python" -P -c 'import socket, sys; print(socket.create_server((sys.argv[1], 0)).getsockname()[1])' "$1"
}

# srun starts a process a GPU on each node; each finds its rank in Slurm's variables.
launch_on_nodes() { # SCRIPT [FLAG ...]
    ((gpus)) || gpus=1 # a process on each node's CPU
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$(free_port "")} WORLD_SIZE=$((SLURM_NNODES * gpus))
    # shellcheck disable=SC2016  # the variables are those of the processes that srun starts
    srun --ntasks="$WORLD_SIZE" --ntasks-per-node="$gpus" --kill-on-bad-exit=1 \
        bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' _ "$python" "$@" &
    await $!
}

# Wait for all of the processes; hand signals on to them; when one fails, end the others. Returns the first bad status.
await() {
    local status=0 one pid left interrupted=75
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
                ((one == interrupted)) || kill "${running[@]}" 2>/dev/null || true
            fi
        done
        running=("${left[@]}")
    done
    trap - USR1 TERM INT
    return "$status"
}
