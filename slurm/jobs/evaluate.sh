#!/usr/bin/env bash
# Slurm job: the untrained student (task 0 of the array) or its Nth checkpoint is scored.
set -euo pipefail

usage="usage: sbatch [...] slurm/jobs/evaluate.sh ROOT SETTINGS SITE PYTHON IMAGE      (slurm/chain.sh submits it)"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
(($# == 5)) || { echo "$usage" >&2; exit 2; }
# shellcheck source=slurm/lib/job.bash
source "$1/slurm/lib/job.bash"
run_stage evaluate "$@"
