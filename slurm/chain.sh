#!/usr/bin/env bash
# Run the chain of stages (prepare, enhance, merge, finetune, evaluate, report) on this machine or as Slurm jobs that wait
# for each other. Work that is done and unchanged is skipped. The code is in src/teacherlm/chain/.
set -euo pipefail
# usage: [VARIABLE=value ...] bash slurm/chain.sh BENCHMARK      (--help lists the variables)
# shellcheck source=slurm/python.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/python.bash"
become chain.sh chain "$@"
