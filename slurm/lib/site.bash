# shellcheck shell=bash disable=SC2034  # much of it is used by who sources it
# The site: accounts, partitions, modules. Sourced by chain.sh and by the jobs.

load_site() {
    SBATCH_ARGS=() CPU_ARGS=() ENHANCE_ARGS=() FINETUNE_ARGS=() EVALUATE_ARGS=() ATLAS_ARGS=() MODULES=()
    local file=${SITE:-$root/slurm/site.env} module container=${CONTAINER:-} runs=${RUNS:-}
    # shellcheck source=/dev/null
    [[ ! -f $file ]] || source "$file"
    CONTAINER=${container:-${CONTAINER:-}} RUNS=${runs:-${RUNS:-}} # what was asked for counts
    SBATCH_ARGS=(${ACCOUNT:+--account="$ACCOUNT"} ${QOS:+--qos="$QOS"} ${CONSTRAINT:+--constraint="$CONSTRAINT"} "${SBATCH_ARGS[@]}")
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        for module in "${MODULES[@]}"; do module load "$module"; done
    fi
}

# What the chain of that name is made of: its settings and its stages.
load_chain() { # BENCHMARK
    # shellcheck source=slurm/lib/settings.bash
    source "$root/slurm/lib/settings.bash"
    # shellcheck source=slurm/lib/stages.bash
    source "$root/slurm/lib/stages.bash"
    # shellcheck source=slurm/lib/atlas.bash
    [[ $1 != atlas-* ]] || source "$root/slurm/lib/atlas.bash"
}
