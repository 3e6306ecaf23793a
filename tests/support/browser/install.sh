#!/usr/bin/env bash
# Install the browser in which the report's pages are tested: Debian's Chromium, where there is none.
set -euo pipefail

usage="usage: bash install.sh      (as root)"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
(($# == 0)) || { echo "$usage" >&2; exit 2; }
for name in chromium chromium-browser google-chrome; do
    ! command -v "$name" >/dev/null || exit 0
done
(($(id -u) == 0)) || { echo "error: root is needed to install chromium" >&2; exit 2; }
echo "installing chromium (a Debian package)"
install=(apt-get install --quiet --quiet --yes --no-install-recommends chromium)
"${install[@]}" >/dev/null || { apt-get update --quiet --quiet && "${install[@]}" >/dev/null; }
