#!/usr/bin/env bash
# The chain: prepare, enhance, merge, finetune, evaluate, report; on this machine, or as Slurm jobs that wait for each
# other. What is done and unchanged is skipped. src/teacherlm/chain/ does it.
set -euo pipefail
# usage: [VARIABLE=value ...] bash slurm/chain.sh BENCHMARK      (--help lists the variables)
# shellcheck source=slurm/python.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/python.bash"
become chain.sh chain "$@"
