# shellcheck shell=bash
# Which python the scripts start: that of the image when CONTAINER names one, PYTHON, that of `make install`, or python3.

choose_python() { # ROOT: prints it
    local found=${PYTHON:-$1/.venv/bin/python}
    [[ -z ${CONTAINER:-} ]] || found=$1/containers/python.sh
    [[ -x $found ]] || found=python3
    echo "$found"
}
