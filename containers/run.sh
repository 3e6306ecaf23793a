#!/usr/bin/env bash
# A stage by its name, within the image: what `apptainer run` starts.
set -euo pipefail

usage="usage: bash containers/run.sh prepare|enhance|merge|finetune|evaluate|report|chain|python [ARGUMENT ...]"
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHON=${PYTHON:-/opt/venv/bin/python}
name=${1:-}
[[ $name == -h || $name == --help ]] && { echo "$usage"; exit 0; }
(($#)) && shift
case $name in
    prepare) exec "$PYTHON" "$root/enhance/data_prepare.py" "$@" ;;
    enhance) exec "$PYTHON" "$root/enhance/enhance.py" "$@" ;;
    merge) exec "$PYTHON" "$root/enhance/merge.py" "$@" ;;
    finetune) exec bash "$root/finetune/finetune.sh" "$@" ;;
    evaluate) exec "$PYTHON" "$root/evaluate/main.py" "$@" ;;
    report) exec "$PYTHON" -P -m teacherlm report "$@" ;;
    chain) LAUNCHER=local exec bash "$root/slurm/chain.sh" "$@" ;;
    python) exec "$PYTHON" "$@" ;;
    *) echo "$usage" >&2; exit 2 ;;
esac
