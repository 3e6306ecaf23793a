# shellcheck shell=bash
# The chain as Slurm jobs, each of which waits for the one before. Sourced by chain.sh.
# What is submitted is listed in CHAIN/jobs.tsv, a line a job: stage, job, tasks, waits for, the work's name, log.

submit_chain() {
    local stage started=0 queue wanted job row after=() list lists=() others waits rows=()
    require_models
    mkdir -p "$chain/logs" "$run_folder/.locks"
    chain=$(cd -- "$chain" && pwd)
    exec 9>>"$run_folder/.locks/submission" # two submissions at once would both find that nothing is under way
    flock 9
    queue=$(squeue --noheader --user="$(id -un)" --format=%F) # job numbers, a line each
    refuse_twice
    for list in "$run_folder"/chains/*/jobs.tsv; do
        [[ $list -ef $chain/jobs.tsv ]] || lists+=("$list") # of other chains in this folder
    done
    [[ ${DRY_RUN:-0} == 1 ]] || save_settings
    for stage in "${stages[@]}"; do
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
        [[ ${DRY_RUN:-0} == 1 ]] || echo "$row" >>"$chain/jobs.tsv"
        after=("$job")
    done
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
    command+=("$root/slurm/jobs/$1.sh" "$root" "$chain/settings.env")
    if [[ ${DRY_RUN:-0} == 1 ]]; then
        job=ID_OF_${1^^}
        printf '%q ' "${command[@]}"
        echo
    else
        if ! job=$("${command[@]}"); then
            ((${#after[@]} == 0)) || scancel "${after[@]}" # its dependants, there are none, would go with it
            fail "Slurm did not take the stage $1, as it says above; the line was: $(printf '%q ' "${command[@]}")"
        fi
        job=${job%%;*} # a federation adds the cluster's name
    fi
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

refuse_twice() {
    local jobs
    mapfile -t jobs < <(under_way all "$chain/jobs.tsv")
    ((${#jobs[@]} == 0)) ||
        fail "this chain is under way (jobs ${jobs[*]}): make status shows it, make cancel ends it"
}

save_settings() {
    local name
    {
        printf 'CHAIN_BENCHMARK=%q\n' "$benchmark"
        printf 'cd -- %q\n' "$PWD"
        for name in "${SAVED[@]}"; do
            [[ -z ${!name:-} ]] || printf 'export %s=%q\n' "$name" "${!name}"
        done
    } >"$chain/settings.env.partial"
    mv "$chain/settings.env.partial" "$chain/settings.env"
}

# Slurm takes a job that asks for more time than its partition allows, and lets it wait for ever. Other reasons to wait
# for ever it may say at once.
warn_of_what_cannot_run() {
    local row stage job partition limit reason most
    for row in "${rows[@]}"; do
        IFS=$'\t' read -r stage job _ <<<"$row"
        read -r partition limit reason < <(squeue --noheader --jobs="$job" --format='%P %l %r') || continue # it has ended
        most=$(sinfo --noheader --partition="$partition" --format=%l | while read -r one; do seconds_of "$one"; done | sort -n | tail -n 1)
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
    [[ $1 == infinite || $1 == UNLIMITED ]] && { echo $((1 << 40)); return; }
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
