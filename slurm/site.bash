# shellcheck shell=bash disable=SC2034  # the scripts that source this file use the variables
# The site's settings: accounts, partitions, modules. job.sh, the Makefile and chain/site.py source this after python.bash.
# A site's file is bash and is trusted like the code, so it must belong to this user, to root, or to the checkout's owner.

load_site() {
    SBATCH_ARGS=() CPU_ARGS=() ENHANCE_ARGS=() FINETUNE_ARGS=() EVALUATE_ARGS=() ATLAS_ARGS=() MODULES=()
    local file=${SITE:-$checkout/slurm/site.env} module container=${CONTAINER:-} runs=${RUNS:-}
    if [[ -f $file ]]; then
        require_trusted "$file"
        # shellcheck source=/dev/null
        source "$file"
    fi
    CONTAINER=${container:-${CONTAINER:-}} RUNS=${runs:-${RUNS:-}} # the caller's values take precedence over the file's
    SBATCH_ARGS=(${ACCOUNT:+--account="$ACCOUNT"} ${QOS:+--qos="$QOS"} ${CONSTRAINT:+--constraint="$CONSTRAINT"} "${SBATCH_ARGS[@]}")
    require_number SIGNAL_SECONDS "${SIGNAL_SECONDS:-180}" 1 # from the user or from the site's file
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        for module in "${MODULES[@]}"; do module load "$module"; done
    fi
}

require_trusted() { # FILE
    local owner mode name
    read -r owner mode name < <(stat --dereference --format='%u %a %U' -- "$1")
    [[ $owner == "$(id -u)" || $owner == 0 || $owner == "$(stat --format=%u -- "$checkout/slurm/site.bash")" ]] ||
        fail_site "$1: this file belongs to ${name/UNKNOWN/user $owner} and would be executed; copy it, and give the copy (SITE=...)"
    [[ $mode != *[2367] ]] || fail_site "$1: everybody may write this file, and it would be executed: chmod o-w"
}

fail_site() { # MESSAGE
    echo "error: ${1//[[:cntrl:]]/?}" >&2
    exit 2
}

# Print the file's settings as words that end with NUL: for each array, the number of its words and the words; then
# NAME=VALUE for each exported variable and for the given ones. What the file itself prints goes to stderr.
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
