# shellcheck shell=bash
# The chain as Slurm jobs, each of which waits for the one before. Sourced by chain.sh.
# What is submitted is listed in CHAIN/jobs.tsv, a line a job: stage, job, tasks, waits for, the work's name, log.

submit_chain() {
    local stage started=0 queue wanted job row after=() list lists=() others waits rows=()
    submitted=() stopped=0 # not local: the traps read them
    read_queue
    require_models
    own_folders "$run_folder/.locks" "$chain/logs" "$chain/states"
    chain=$(cd -- "$chain" && pwd)
    exec 9>>"$run_folder/.locks/submission" # two submissions at once would both find that nothing is under way
    flock 9
    read_queue
    refuse_twice
    listed=$(stat --format=%s "$chain/jobs.tsv" 2>/dev/null || true) # bytes
    trap 'stopped=130' INT
    trap 'stopped=143' TERM
    trap 'stopped=129' HUP
    trap withdraw EXIT
    for list in "$run_folder"/chains/*/jobs.tsv; do
        [[ ! -f $list || ! -O $list || $list -ef $chain/jobs.tsv ]] || lists+=("$list") # of other chains in this folder
    done
    settings_file=settings-DRY_RUN.json
    [[ ${DRY_RUN:-0} == 1 ]] || save_settings
    for stage in "${stages[@]}"; do
        ((stopped == 0)) || exit "$stopped"
        mapfile -t wanted < <(tasks_of "$stage")
        ((started)) || find_missing "$stage"
        ((${#wanted[@]})) || continue
        started=1
        mapfile -t others < <(under_way "$(work_of "$stage")" "${lists[@]}")
        submit "$stage"
        waits=("${after[@]}" "${others[@]}")
        printf -v row '%s\t%s\t%s\t%s\t%s\t%s' \
            "$stage" "$job" "$(ranges "${wanted[@]}")" "${waits[*]:--}" "$(work_of "$stage")" "$(log_of "$stage")"
        rows+=("$row")
        [[ ${DRY_RUN:-0} == 1 ]] || write_row "$row"
        after=("$job")
    done
    ((stopped == 0)) || exit "$stopped"
    trap - INT TERM HUP EXIT # all is submitted: what comes now is only said
    show
    [[ ${DRY_RUN:-0} == 1 ]] || warn_of_what_cannot_run
}

# sbatch STAGE with the tasks `wanted`, after the jobs `after` have gone well and `others`, at the same work, have ended;
# sets `job`.
submit() { # STAGE
    local request=() waits=() command
    resources "$1"
    waits=("${after[@]/#/afterok:}" "${others[@]/#/afterany:}")
    command=(
        sbatch --parsable --job-name="$1 $run_name" --output="$(log_of "$1")" --open-mode=append
        --requeue --signal="B:USR1@${SIGNAL_SECONDS:-180}" --kill-on-invalid-dep=yes
        ${waits[*]:+--dependency="$(IFS=, && echo "${waits[*]}")"}
        "${request[@]}"
    )
    is_array "$1" && command+=(--array="$(ranges "${wanted[@]}")")
    command+=("$root/slurm/jobs/$1.sh" "$root" "$chain/$settings_file" "${SITE:--}" "${PYTHON:--}" "${CONTAINER:--}")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        job=ID_OF_${1^^}
        printf '%q ' "${command[@]}"
        echo
    else
        # sbatch ignores Ctrl-C, so that it ends with the number of a job that Slurm has taken.
        job=$(trap '' INT TERM HUP && exec "${command[@]}") ||
            fail "Slurm did not take the stage $1, as it says above; the line was: $(printf '%q ' "${command[@]}")"
        submitted+=("${job%%;*}") # a federation adds the cluster's name
        job=${submitted[-1]}
    fi
}

# A submission that ends early, by a refusal, a full disk or a signal: cancel every job of this call. The trap of EXIT.
withdraw() {
    local status=$? found jobs
    trap '' INT TERM HUP
    set +e
    # Slurm's own list comes first: it may have a job although sbatch failed, when the answer was lost.
    found=$(jobs_of_chain) || found=$(printf '%s\n' "${submitted[@]}")
    read -r -d '' -a jobs <<<"$found"
    if ((${#jobs[@]} == 0)) || scancel "${jobs[@]}" || { found=$(jobs_of_chain) && [[ -z $found ]]; }; then
        if [[ -n $listed ]]; then truncate --size="$listed" "$chain/jobs.tsv"; else rm -f "$chain/jobs.tsv"; fi
        ((${#jobs[@]} == 0)) || echo "chain.sh: cancelled what was submitted: jobs ${jobs[*]}" >&2
    else
        echo "chain.sh: jobs ${jobs[*]} are still in the queue; when Slurm answers again: scancel ${jobs[*]}" >&2
    fi
    exit "$status"
}

# The jobs of this chain that Slurm has, by their logs' folder; fails where Slurm does not answer.
jobs_of_chain() {
    local text job log
    [[ ${DRY_RUN:-0} != 1 ]] || return 0
    text=$(timeout 60 squeue --noheader --user="$(id -un)" --Format='ArrayJobID:24,STDOUT:4096' 2>/dev/null) || return
    while read -r job log; do
        [[ $log != "${chain//%/%%}/logs/"* ]] || echo "$job"
    done <<<"$text" | sort --unique --numeric-sort
}

write_row() { # ROW; said by `fail` alone, not by echo too
    { echo "$1" >>"$chain/jobs.tsv"; } 2>/dev/null || fail "$chain/jobs.tsv: cannot be written; is the disk full?"
}

# The numbers of the user's jobs, a line each: `queue`.
read_queue() {
    queue=$(timeout 60 squeue --noheader --user="$(id -un)" --format=%F 2>&1) && return
    queue=${queue##*$'\n'} # the last line has the reason
    fail "Slurm does not answer (${queue:-squeue waited for a minute}); LAUNCHER=local runs the chain on this machine"
}

# The tasks of a stage that are not done: `wanted`.
find_missing() { # STAGE
    local words=(--list_missing) found
    case $1 in report | score) return ;; enhance) words=(0 --list_missing) ;; esac
    if declare -F "missing_$1" >/dev/null; then
        found=$("missing_$1")
    else
        found=$(NUM_GPUS=0 "stage_$1" "${words[@]}")
    fi
    mapfile -t wanted < <(grep -x '[0-9][0-9]*' <<<"$found" | sort --numeric-sort --unique)
}

log_of() { # STAGE; Slurm's % is doubled, and for arrays the task is added
    local log=$chain/logs/$1
    log=${log//%/%%}
    is_array "$1" && log+=-%a
    echo "$log.log"
}

# Numbers as sbatch takes them: 0 1 2 5 -> 0-2,5
ranges() { # NUMBER ...
    local first=$1 last=$1 number text=
    for number in "${@:2}" end; do
        [[ $number != end ]] && ((number == last + 1)) && { last=$number; continue; }
        text+=,$first
        ((last > first)) && text+=-$last
        first=$number last=$number
    done
    echo "${text#,}"
}

# The jobs in some lists that are in Slurm's `queue`, of a work or of all.
under_way() { # WORK LIST ...
    local job name
    while IFS=$'\t' read -r _ job _ _ name _; do
        [[ $'\n'$queue$'\n' == *$'\n'"$job"$'\n'* && ($1 == all || $1 == "$name") ]] && echo "$job"
    done < <(cat -- "${@:2}" 2>/dev/null) | sort --unique
}

# A job in the queue that is in no list is of a submission that was killed before it could note it.
refuse_twice() {
    local jobs unknown
    mapfile -t jobs < <(under_way all "$chain/jobs.tsv")
    mapfile -t unknown < <(jobs_of_chain | grep --invert-match --line-regexp --fixed-strings -- "$(printf '%s\n' "${jobs[@]}")")
    if ((${#unknown[@]})); then
        scancel "${unknown[@]}"
        echo "chain.sh: cancelled jobs ${unknown[*]}, which a submission that was killed had left" >&2
    fi
    ((${#jobs[@]} == 0)) ||
        fail "this chain is under way (jobs ${jobs[*]}): make status shows it, make cancel ends it"
}

# Write what the jobs of this submission read: a new file, which no later submission changes.
save_settings() {
    local name words=("benchmark=$benchmark" "directory=$PWD")
    for name in "${SAVED[@]}" "$(data_variable "$benchmark")"; do
        [[ -z ${!name:-} ]] || words+=("$name=${!name}")
    done
    settings_file=$(printf '%s\0' "${words[@]}" | "$PYTHON" -P -m teacherlm chain-folder save "$chain") || exit 2
}

# Slurm takes a job that asks for more time than its partition allows, and lets it wait for ever. Other reasons to wait
# for ever it may say at once.
warn_of_what_cannot_run() {
    local row stage job partition limit reason most
    for row in "${rows[@]}"; do
        IFS=$'\t' read -r stage job _ <<<"$row"
        read -r partition limit reason < <(squeue --noheader --jobs="$job" --format='%P %l %r') || continue # it has ended
        most=$(sinfo --noheader --partition="$partition" --format=%l | while read -r one; do seconds_of "$one"; done | sort -n | tail -n 1) || continue
        if (($(seconds_of "$limit") > ${most:-0})); then
            reason="it asks for more time ($limit) than its partition $partition allows"
        elif [[ $reason =~ ^(Partition(Config|NodeLimit)|BadConstraints|(Assoc|QOS).*Max.*Per(Job|Node).*)$ ]]; then
            reason="Slurm says $reason"
        else
            continue
        fi
        echo "chain.sh: warning: $stage (job $job) will wait for ever: $reason; make cancel, then set it in" \
            "slurm/site.env (make site shows the limits)" >&2
    done
}

# Slurm's [days-][hours:]minutes:seconds
seconds_of() { # TIME
    local days=0 part seconds=0
    [[ $1 =~ ^([0-9]+-)?[0-9]+(:[0-9]+)*$ ]] || { echo $((1 << 40)); return; } # infinite, UNLIMITED
    [[ $1 == *-* ]] && days=${1%%-*}
    local IFS=:
    for part in ${1#*-}; do seconds=$((seconds * 60 + 10#$part)); done
    echo $((10#$days * 86400 + seconds))
}

# A table of the jobs, and the graph.
show() {
    local row stage job tasks waits log before=
    ((${#rows[@]})) || { echo "nothing to submit"; return; }
    {
        printf 'stage\tjob\ttasks\twaits for\tlog\n'
        for row in "${rows[@]}"; do
            IFS=$'\t' read -r stage job tasks waits _ log <<<"$row"
            printf '%s\t%s\t%s\t%s\t%s\n' "$stage" "$job" "$tasks" "$waits" "${log#"$PWD"/}"
        done
    } | column -t -s $'\t'
    [[ ${DRY_RUN:-0} == 1 ]] || return 0
    printf '\ngraph LR\n'
    for row in "${rows[@]}"; do
        IFS=$'\t' read -r stage job tasks _ <<<"$row"
        echo "    ${before:+$before --> }${stage}[\"$stage $tasks\"]"
        before=$stage
    done
}
