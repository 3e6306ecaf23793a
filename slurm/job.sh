#!/usr/bin/env bash
# Slurm job: one stage of a chain, or one task of it. The job passes the warning before its time limit on to the stage, and
# requeues itself if the stage is not done.
set -euo pipefail

usage="usage: sbatch [...] slurm/job.sh STAGE ROOT SETTINGS SITE PYTHON IMAGE      (slurm/chain.sh submits it; - means none)"
STOPPED=75 # exit code of a stage that was interrupted and can resume
KILLED=137 # exit code of a stage that SIGKILL ended
ENDED=143 # exit code of a stage that SIGTERM ended

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
    (($# == 6)) || { echo "$usage" >&2; exit 2; }
    local stage=$1 number=${SLURM_ARRAY_TASK_ID:-0} status=0 grace=90 kill_at=0 cancelled=0 child='' program
    export SITE=${4#-} PYTHON=${5#-} CONTAINER=${6#-}
    states=$(dirname -- "$3")/states
    # shellcheck source=slurm/python.bash
    source "$2/slurm/python.bash"
    # shellcheck source=slurm/site.bash
    source "$2/slurm/site.bash"
    require_number SLURM_ARRAY_TASK_ID "$number" 0
    trap 'kill_at=$((SECONDS + grace)); kill -USR1 "$child" 2>/dev/null || true' USR1
    trap 'cancelled=1; kill -TERM "$child" 2>/dev/null || true' TERM # scancel, or a preemption, after which Slurm requeues the job
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}} # otherwise torch uses all CPUs of the node
    export HF_HUB_OFFLINE=1 # compute nodes have no internet: a missing file is an error at once, not after a timeout
    load_site # before choosing the Python, which may need the site's modules
    program=("$(choose_host_python)" -P -m teacherlm --called job.sh chain-job)
    grace=$("${program[@]}" check "$stage" "$3" "$number") # seconds from the warning until the stage is killed
    require_number grace "$grace" 1
    # One task of an array may share its SLURM_JOB_ID with the whole array, so Slurm's programs get NUMBER_INDEX.
    job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    echo "== $stage, job $job on $SLURM_JOB_NODELIST, $(date '+%F %T')"
    note "$stage" "$number" running
    "${program[@]}" run "$stage" "$3" "$number" &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        ((kill_at == 0 || SECONDS < kill_at)) || kill -KILL "$child" 2>/dev/null || true
        sleep 1 &
        wait $! || true # a signal ends the `wait`, and then its trap runs
    done
    wait "$child" || status=$?
    if ((kill_at == 0 && (status == STOPPED || status == ENDED))); then
        sleep 1 & # scancel signals all processes one by one, so the signal to this script may still be on its way
        wait $! || true
    fi
    if ((kill_at && (status == STOPPED || status > 128))); then # a stage without a handler dies from the signal
        come_back interrupted "$stage" "$number"
    elif ((status == KILLED)) && first_time "$stage" "$number"; then
        come_back killed "$stage" "$number"
    elif ((status == KILLED)); then
        note "$stage" "$number" "failed: killed again, perhaps out of memory; request more with --mem in slurm/site.env"
    elif ((cancelled && (status == STOPPED || status == ENDED))); then
        note "$stage" "$number" cancelled
    elif ((status == STOPPED)); then
        note "$stage" "$number" "failed: stopped by SIGTERM"
    elif ((status)); then
        note "$stage" "$number" "failed with $status"
    else
        note "$stage" "$number" "done"
    fi
    exit "$status"
}

come_back() { # WHY STAGE TASK
    note "$2" "$3" requeued
    echo "== $1: requeued"
    scontrol requeue "$job"
    sleep 60 # until Slurm ends this run
}

# Succeeds if this job's task was not killed before. A first SIGKILL may come from an operator or a failing node; a second
# is taken for lack of memory.
first_time() { # STAGE TASK
    local file=$states/$1-$2.killed
    [[ ! -e $file || $(<"$file") != "$SLURM_JOB_ID" ]] && echo "$SLURM_JOB_ID" >"$file"
}

# Write the state of a task for `make status`: a file with one line, which appears complete.
note() { # STAGE TASK STATE
    local file=$states/$1-$2
    mkdir -p "$states"
    printf '%s\t%s\t%s\t%s\n' "$3" "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" "$(hostname)" "$(date +%s)" >"$file.partial"
    mv "$file.partial" "$file"
}

main "$@"
