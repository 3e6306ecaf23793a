# shellcheck shell=bash disable=SC2034  # much of it is used by who sources it
# The site: accounts, partitions, modules. Sourced by chain.sh and by the jobs.

load_site() {
    SBATCH_ARGS=() CPU_ARGS=() ENHANCE_ARGS=() FINETUNE_ARGS=() EVALUATE_ARGS=() MODULES=()
    local file=${SITE:-$root/slurm/site.env} module container=${CONTAINER:-} runs=${RUNS:-}
    # shellcheck source=/dev/null
    [[ ! -f $file ]] || source "$file"
    CONTAINER=${container:-${CONTAINER:-}} RUNS=${runs:-${RUNS:-}} # what was asked for counts
    SBATCH_ARGS=(${ACCOUNT:+--account="$ACCOUNT"} ${QOS:+--qos="$QOS"} ${CONSTRAINT:+--constraint="$CONSTRAINT"} "${SBATCH_ARGS[@]}")
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        for module in "${MODULES[@]}"; do module load "$module"; done
    fi
}
