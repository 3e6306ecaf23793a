#!/usr/bin/env bash
# Score a BLOOM or BLOOMZ model on MMLU's 57 subjects. This is run_hf.sh MODEL mmlu under the reference's name.
set -euo pipefail

usage() {
    echo "usage: bash $(basename -- "$0") MODEL [FLAG ...]   (run_hf.sh --help lists the flags and variables)"
    echo "example: bash $(basename -- "$0") smollm2-135m --limit 10"
}

[[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
(($# >= 1)) || { usage >&2; exit 2; }
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/run_hf.sh" "$1" mmlu "${@:2}"
