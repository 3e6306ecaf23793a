#!/usr/bin/env bash
# Remove the networks that start.sh made: the namespaces, their connections and the bridge. There may be none.
set -euo pipefail

usage="usage: bash remove-networks.sh PREFIX      (start.sh writes it to FOLDER/networks)"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
[[ $# == 1 && $1 =~ ^sl[0-9]+$ ]] || { echo "$usage" >&2; exit 2; }
export PATH=$PATH:/usr/sbin:/sbin

for link in /sys/class/net/"$1"v*; do # otherwise it stays until the last process in the namespace has ended
    [[ ! -e $link ]] || ip link delete "${link##*/}" 2>/dev/null || true
done
for network in /run/netns/"$1"n*; do
    [[ ! -e $network ]] || ip netns delete "${network##*/}"
done
[[ ! -e /sys/class/net/$1 ]] || ip link delete "$1"
