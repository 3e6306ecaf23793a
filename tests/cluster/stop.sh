#!/usr/bin/env bash
# End what start.sh started: the daemons by their pid files, the nodes' networks if there are any.
set -uo pipefail

[[ $# == 1 && $1 != -* ]] || { echo "usage: bash stop.sh FOLDER"; exit $(($# != 1)); }
export PATH=$PATH:/usr/sbin:/sbin

daemons() { # SIGNAL: how many took it
    local file count=0
    for file in "$1"/run/slurmd-*.pid "$1"/run/slurmctld.pid "$1"/run/munged.pid; do
        [[ -s $file ]] && kill "-$2" "$(<"$file")" 2>/dev/null && count=$((count + 1))
    done
    echo "$count"
}

daemons "$1" TERM >/dev/null
for _ in $(seq 50); do
    [[ $(daemons "$1" 0) == 0 ]] && break
    sleep 0.1
done
daemons "$1" KILL >/dev/null
for name in $(ip netns list 2>/dev/null | grep -o '^slnode[0-9]*'); do
    ip netns delete "$name"
done
ip link delete slbridge 2>/dev/null
exit 0
