# shellcheck shell=bash disable=SC2034  # much of it is used by who sources it
# The site: accounts, partitions, modules. Sourced by job.sh, the Makefile and chain/site.py, after python.bash.
# A site's file is bash and is trusted like the code: it has to be this user's, root's, or of whoever owns the checkout.

load_site() {
    SBATCH_ARGS=() CPU_ARGS=() ENHANCE_ARGS=() FINETUNE_ARGS=() EVALUATE_ARGS=() ATLAS_ARGS=() MODULES=()
    local file=${SITE:-$checkout/slurm/site.env} module container=${CONTAINER:-} runs=${RUNS:-}
    if [[ -f $file ]]; then
        require_trusted "$file"
        # shellcheck source=/dev/null
        source "$file"
    fi
    CONTAINER=${container:-${CONTAINER:-}} RUNS=${runs:-${RUNS:-}} # what was asked for counts
    SBATCH_ARGS=(${ACCOUNT:+--account="$ACCOUNT"} ${QOS:+--qos="$QOS"} ${CONSTRAINT:+--constraint="$CONSTRAINT"} "${SBATCH_ARGS[@]}")
    require_number SIGNAL_SECONDS "${SIGNAL_SECONDS:-180}" 1 # of the user's, or of the site's file
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        for module in "${MODULES[@]}"; do module load "$module"; done
    fi
}

require_trusted() { # FILE
    local owner mode name
    read -r owner mode name < <(stat --dereference --format='%u %a %U' -- "$1")
    [[ $owner == "$(id -u)" || $owner == 0 || $owner == "$(stat --format=%u -- "$checkout/slurm/site.bash")" ]] ||
        fail_site "$1: this file is ${name/UNKNOWN/user $owner}'s, and would be executed; copy it, and name the copy (SITE=...)"
    [[ $mode != *[2367] ]] || fail_site "$1: everybody may write this file, and it would be executed: chmod o-w"
}

fail_site() { # MESSAGE
    echo "error: ${1//[[:cntrl:]]/?}" >&2
    exit 2
}

# All that the file says, as words that end with NUL: of each array the number of its words, and these; then NAME=VALUE of
# what is exported, and of some variables. What the file itself prints is no part of that.
hand_on_site() { # NAME ...
    local name
    exec 3>&1 1>&2
    load_site
    for name in SBATCH_ARGS CPU_ARGS ENHANCE_ARGS FINETUNE_ARGS EVALUATE_ARGS ATLAS_ARGS; do
        local -n words=$name
        printf '%s\0' "${#words[@]}" "${words[@]}" >&3
    done
    env --null >&3
    for name in "$@"; do
        [[ -z ${!name:-} ]] || printf '%s=%s\0' "$name" "${!name}" >&3
    done
}
