#!/usr/bin/env bash
# Install the missing Debian packages that a private Slurm needs.
set -euo pipefail

usage="usage: bash install.sh      (as root)"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
(($# == 0)) || { echo "$usage" >&2; exit 2; }
export PATH=$PATH:/usr/sbin:/sbin
missing=()
for pair in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge ip:iproute2 flock:util-linux; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
((${#missing[@]})) || exit 0
(($(id -u) == 0)) || { echo "error: make test-cluster needs root, to run Slurm's daemons and to install: ${missing[*]}" >&2; exit 2; }
echo "installing ${missing[*]} (Debian packages)"
# The packages must not start Slurm's daemons: the tests start their own.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
fi
apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}" >/dev/null ||
    { apt-get update --quiet --quiet && apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}" >/dev/null; }
