#!/usr/bin/env bash
# Print the differences between two images, in packages and in the project's files. Like diff, exit with 1 if there are any.
set -euo pipefail

usage="usage: bash containers/diff.sh ONE.sif OTHER.sif      (or: make container-diff A=ONE.sif B=OTHER.sif)"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
(($# == 2)) || { echo "$usage" >&2; exit 2; }
# shellcheck source=containers/apptainer.bash
source "$(dirname -- "${BASH_SOURCE[0]}")/apptainer.bash"
apptainer=$(find_apptainer)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for image in "$1" "$2"; do
    [[ -e $image ]] || { echo "error: $image: there is no such image" >&2; exit 2; }
done
status=0
for record in packages.txt files.sha256; do
    "$apptainer" --silent exec "$1" cat "/opt/image/$record" >"$work/one"
    "$apptainer" --silent exec "$2" cat "/opt/image/$record" >"$work/other"
    diff --unified=0 --label "$1 $record" --label "$2 $record" "$work/one" "$work/other" || status=1
done
((status)) || echo "the packages and the project's files are the same"
exit "$status"
