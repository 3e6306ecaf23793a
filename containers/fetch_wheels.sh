#!/usr/bin/env bash
# Download the packages of an image's lock with this machine's pip. Its index, proxy and certificates are used only here.
# Packages that were downloaded before are not downloaded again.
set -euo pipefail

usage="usage: bash containers/fetch_wheels.sh cpu|gpu FOLDER"
TORCH_INDEX=https://download.pytorch.org/whl/cpu # PyPI does not have torch's build for CPUs

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
    (($# == 2)) && [[ $1 == cpu || $1 == gpu ]] || { echo "$usage" >&2; exit 2; }
    local root python command
    root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    python=$root/.venv/bin/python
    [[ -x $python ]] || python=${XDG_CACHE_HOME:-~/.cache}/teacherlm/pip/bin/python
    [[ -x $python ]] || make_pip "$(dirname -- "$(dirname -- "$python")")"
    mkdir -p "$2"
    echo "downloading packages into $2"
    command=("$python" -I -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest "$2"
        -r "$root/containers/$1.lock")
    "${command[@]}" && return
    [[ $1 == cpu ]] || exit 2
    echo "trying again with $TORCH_INDEX"
    PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:-} $TORCH_INDEX" "${command[@]}"
}

# Install a pip for Python 3.11, the Python of the images.
make_pip() { # FOLDER
    if ! python3.11 -I -c 'import ensurepip' 2>/dev/null; then
        if (($(id -u))) || ! command -v apt-get >/dev/null; then
            echo "error: Python 3.11 with venv is needed to download the packages" >&2
            exit 2
        fi
        echo "installing python3.11-venv (Debian package)"
        apt-get install --quiet --quiet --yes --no-install-recommends python3.11-venv >/dev/null
    fi
    python3.11 -I -m venv "$1"
}

main "$@"
