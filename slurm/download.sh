#!/usr/bin/env bash
# Download what a chain's jobs need, where there is internet: the models, and the benchmark's data, which is prepared.
set -euo pipefail
# usage: [STUDENT=...] [TEACHER=...] [TASK=...] [LIMIT=...] [RUNS=...] bash slurm/download.sh BENCHMARK
# shellcheck source=slurm/python.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/python.bash"
become download.sh download "$@"
