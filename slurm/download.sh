#!/usr/bin/env bash
# Fetch what the jobs of a chain need while there is internet: the models, and the benchmark's data, which are prepared.
set -euo pipefail

usage="usage: [STUDENT=...] [TEACHER=...] [TASK=...] bash slurm/download.sh BENCHMARK"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
(($# == 1)) || { echo "$usage" >&2; exit 2; }
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=slurm/lib/settings.bash
source "$root/slurm/lib/settings.bash"
# shellcheck source=slurm/lib/site.bash
source "$root/slurm/lib/site.bash"
# shellcheck source=slurm/lib/stages.bash
source "$root/slurm/lib/stages.bash"
load_site
settings "$1"
own_folders "$run_folder/.locks"
for model in "$student" "$teacher"; do
    [[ $model == field:* || $model == http*://* ]] || "$PYTHON" -P -m teacherlm.catalog.models folder "$model"
done
(run_alone prepare 0)
