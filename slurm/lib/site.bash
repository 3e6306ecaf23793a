# shellcheck shell=bash disable=SC2034  # much of it is used by who sources it
# The site: accounts, partitions, modules. Sourced by chain.sh and by the jobs.
# A site's file is bash and is trusted like the code: it has to be this user's, root's, or of whoever owns the checkout.

# shellcheck source=slurm/lib/python.bash
source "$root/slurm/lib/python.bash"

load_site() {
    SBATCH_ARGS=() CPU_ARGS=() ENHANCE_ARGS=() FINETUNE_ARGS=() EVALUATE_ARGS=() ATLAS_ARGS=() MODULES=()
    local file=${SITE:-$root/slurm/site.env} module container=${CONTAINER:-} runs=${RUNS:-}
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
    [[ $owner == "$(id -u)" || $owner == 0 || $owner == "$(stat --format=%u -- "$root/slurm/lib/site.bash")" ]] ||
        fail_site "$1: this file is ${name/UNKNOWN/user $owner}'s, and would be executed; copy it, and name the copy (SITE=...)"
    [[ $mode != *[2367] ]] || fail_site "$1: everybody may write this file, and it would be executed: chmod o-w"
}

fail_site() { # MESSAGE
    echo "error: ${1//[[:cntrl:]]/?}" >&2
    exit 2
}

# What the chain of that name is made of: its settings and its stages.
load_chain() { # BENCHMARK; sets SAVED
    # shellcheck source=slurm/lib/settings.bash
    source "$root/slurm/lib/settings.bash"
    # shellcheck source=slurm/lib/stages.bash
    source "$root/slurm/lib/stages.bash"
    # shellcheck source=slurm/lib/atlas.bash
    [[ $1 != atlas-* ]] || source "$root/slurm/lib/atlas.bash"
}
