#!/usr/bin/env bash
# Test an image: run the test in its definition, the demo in it, and, if the tests' packages are installed here,
# tests/container/test_container.py.
set -euo pipefail

usage="usage: bash containers/test_image.sh IMAGE.sif      (or: make container-test)"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
(($# == 1)) || { echo "$usage" >&2; exit 2; }
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
[[ -e $1 ]] || { echo "error: $1: there is no such image; make one with: make container" >&2; exit 2; }
image=$(realpath -- "$1")
# shellcheck source=containers/apptainer.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/apptainer.bash"
apptainer=$(find_apptainer)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tmp"
"$apptainer" test --cleanenv --containall --workdir "$work/tmp" "$image"
cd -- "$root"
CONTAINER=$image RUNS=$work/runs make demo
if [[ -x .venv/bin/python ]]; then
    CONTAINER=$image .venv/bin/python -P -m pytest -m container
else
    echo "tests/container/test_container.py was not run: its packages are missing here; run make install first"
fi
