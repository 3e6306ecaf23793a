#!/usr/bin/env bash
# Run a command of the project by its name, within an image. `apptainer run` starts this script.
set -euo pipefail

usage="usage: bash containers/run.sh COMMAND [ARGUMENT ...]      (within an image)
COMMAND is prepare, enhance, merge, finetune, evaluate, report, chain, another one that 'commands' lists, or python.
finetune takes flags, or the arguments of finetune.sh: MODEL DATASET ..."
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
export PYTHON=/opt/venv/bin/python
(($#)) && [[ -x $PYTHON ]] || { echo "$usage" >&2; exit 2; }
unset CONTAINER PYTHONHOME PYTHONPATH # their paths are those of the machine, not of the image
command=("$1")
[[ $1 != finetune || ${2:-} == -* ]] || command=(--called finetune.sh finetune-here)
[[ $1 != chain ]] || export LAUNCHER=local # Slurm's programs are not in the image
case $1 in
    python) exec "$PYTHON" "${@:2}" ;;
    commands) exec "$PYTHON" -P -m teacherlm --help ;;
    *) exec "$PYTHON" -P -m teacherlm "${command[@]}" "${@:2}" ;;
esac
