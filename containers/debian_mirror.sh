#!/usr/bin/env bash
# Print the address of the Debian mirror that this machine's apt uses; DEBIAN_MIRROR overrides it.
set -euo pipefail

usage="usage: [DEBIAN_MIRROR=http://...] bash containers/debian_mirror.sh      (the other scripts here call it)"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
(($# == 0)) || { echo "$usage" >&2; exit 2; }
found=${DEBIAN_MIRROR:-}
if [[ -z $found ]] && command -v apt-get >/dev/null; then
    # shellcheck disable=SC2016  # apt expands these, not the shell
    found=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN)' 2>/dev/null | awk '$2 == "Debian" {print $1; exit}')
fi
echo "${found:-http://deb.debian.org/debian/}"
