#!/usr/bin/env bash
# End the daemons that start.sh started, by their pid files, and remove the nodes' networks if there are any.
set -euo pipefail

usage="usage: bash stop.sh FOLDER"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
(($# == 1)) || { echo "$usage" >&2; exit 2; }
export PATH=$PATH:/usr/sbin:/sbin

daemons() { # FOLDER SIGNAL: sends the signal, and prints how many daemons received it
    local file count=0
    for file in "$1"/run/slurmd-*.pid "$1"/run/slurmctld.pid "$1"/run/munged.pid; do
        if [[ -s $file ]] && kill "-$2" "$(<"$file")" 2>/dev/null; then count=$((count + 1)); fi
    done
    echo "$count"
}

daemons "$1" TERM >/dev/null
for _ in $(seq 50); do
    [[ $(daemons "$1" 0) == 0 ]] && break
    sleep 0.1
done
daemons "$1" KILL >/dev/null
[[ ! -e $1/networks ]] || bash "$(dirname -- "${BASH_SOURCE[0]}")/remove-networks.sh" "$(<"$1/networks")"
