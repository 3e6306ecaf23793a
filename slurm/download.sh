#!/usr/bin/env bash
# Fetch what the jobs of a chain need while there is internet: the models, and the benchmark's data, which are prepared.
set -euo pipefail
# usage: [STUDENT=...] [TEACHER=...] [TASK=...] bash slurm/download.sh BENCHMARK
# shellcheck source=slurm/python.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/python.bash"
become download.sh download "$@"
