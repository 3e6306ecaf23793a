#!/usr/bin/env bash
# Slurm job: the untrained student (task 0 of the array) or its Nth checkpoint is scored.
set -euo pipefail
[[ ${1:-} == /* ]] || { echo "usage: sbatch [...] evaluate.sh ROOT CHAIN/settings.env      (slurm/chain.sh submits it)"; exit 0; }
# shellcheck source=slurm/lib/job.bash
source "$1/slurm/lib/job.bash"
run_stage evaluate "$@"
