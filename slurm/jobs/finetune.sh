#!/usr/bin/env bash
# Slurm job: the student learns.
set -euo pipefail
[[ ${1:-} == /* ]] || { echo "usage: sbatch [...] finetune.sh ROOT CHAIN/settings.env      (slurm/chain.sh submits it)"; exit 0; }
# shellcheck source=slurm/lib/job.bash
source "$1/slurm/lib/job.bash"
run_stage finetune "$@"
