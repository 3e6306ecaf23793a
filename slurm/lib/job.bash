# shellcheck shell=bash
# Within a job: run a stage, hand on the warning before the time limit, and have the job come back when it is not done.
# Sourced by the scripts in jobs/.

STOPPED=75 # exit code of a stage that was interrupted and can go on
KILLED=137 # of one that SIGKILL ended

run_stage() { # STAGE ROOT SETTINGS SITE PYTHON CONTAINER; - is none
    local number=${SLURM_ARRAY_TASK_ID:-0} words=() status=0 grace kill_at=0 child=
    root=$2
    export SITE=${4#-} PYTHON=${5#-} CONTAINER=${6#-}
    # shellcheck source=slurm/lib/site.bash
    source "$root/slurm/lib/site.bash"
    require_number SLURM_ARRAY_TASK_ID "$number" 0
    trap 'kill_at=$((SECONDS + ${grace:-90})); kill -USR1 "$child" 2>/dev/null' USR1
    trap 'kill -TERM "$child" 2>/dev/null' TERM # a preemption, whose requeue is Slurm's; or scancel
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} # torch would count the node's processors
    export HF_HUB_OFFLINE=1 # compute nodes have no internet: what is missing is an error at once, not a timeout
    load_site # first, for its modules may be what python needs
    read_settings "$3"
    # shellcheck disable=SC2034  # the trap reads it: seconds to end in after the warning; then it is killed
    grace=$((SIGNAL_SECONDS / 2))
    settings "$CHAIN_BENCHMARK"
    is_array "$1" && words=("$number")
    echo "== $1${SLURM_ARRAY_TASK_ID:+ $number}, job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(date '+%F %T')"
    note "$1" "$number" running
    run_alone "$1" "$number" "${words[@]}" &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        ((kill_at == 0 || SECONDS < kill_at)) || kill -KILL "$child" 2>/dev/null || true
        sleep 1 &
        wait $! || true # a signal ends the waiting, and is handled now
    done
    wait "$child" || status=$?
    if ((kill_at && (status == STOPPED || status > 128))); then # of a stage that cannot stop the signal is the end
        come_back interrupted "$1" "$number"
    elif ((status == KILLED)) && first_time "$1" "$number"; then
        come_back killed "$1" "$number"
    elif ((status == KILLED)); then
        note "$1" "$number" "failed: killed again, so perhaps out of memory; its --mem in slurm/site.env asks for more"
    elif ((status == STOPPED)); then
        note "$1" "$number" "failed: stopped by SIGTERM"
    elif ((status)); then
        note "$1" "$number" "failed with $status"
    else
        note "$1" "$number" "done"
    fi
    return "$status"
}

# The settings of the submission, which are data: a file of this job's user, from which nothing is executed.
read_settings() { # FILE
    local name value index names=() values=()
    while IFS= read -r -d '' name && IFS= read -r -d '' value; do
        names+=("$name") values+=("$value")
    done < <("$(choose_python "$root")" -P -m teacherlm chain-folder read "$1")
    ((${#names[@]})) && [[ ${names[-1]} == end ]] || exit 2 # python has said why
    export CHAIN_BENCHMARK=${values[0]}
    cd -- "${values[1]}"
    load_chain "$CHAIN_BENCHMARK"
    for ((index = 2; index < ${#names[@]} - 1; index++)); do
        name=${names[index]}
        [[ " ${SAVED[*]} $(data_variable "$CHAIN_BENCHMARK") " == *" $name "* ]] || fail "$1: variables: $name is none of a chain's"
        printf -v "$name" %s "${values[index]}"
        export "${name?}"
    done
    require_number SIGNAL_SECONDS "${SIGNAL_SECONDS:=180}" 1
}

come_back() { # WHY STAGE TASK
    note "$2" "$3" requeued
    echo "== $1: requeued"
    # A task by its number in the array: one of them has the array's own number as its job's, which would mean them all.
    scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
    sleep 60 # until Slurm ends this run
}

# Whether this job's task was not killed before: who kills once is a person or a node; the second time it is its memory.
first_time() { # STAGE TASK
    local file=$chain/states/$1-$2.killed
    [[ ! -e $file || $(<"$file") != "$SLURM_JOB_ID" ]] && echo "$SLURM_JOB_ID" >"$file"
}

# Where a stage stands, for `make status`: one line a task, written whole.
note() { # STAGE TASK STATE
    local file=$chain/states/$1-$2
    mkdir -p "$chain/states"
    printf '%s\t%s\t%s\t%s\n' "$3" "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" "$(hostname)" "$(date +%s)" >"$file.partial"
    mv "$file.partial" "$file"
}
