# shellcheck shell=bash
# The choice of the Python that the scripts start; the scripts source this file. No module is ever imported from the
# current folder, so modules and lines of code are run with -P (or -I). A script of this project (python FILE.py) has its
# folder on the import path.

checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# An empty entry of PYTHONPATH means the current folder (`export PYTHONPATH=/mine:$PYTHONPATH` can make one), and a relative
# entry depends on it. The code of this checkout comes first, before any installed code.
absolute_entries() { # PATHS: prints the absolute ones
    local entry entries kept=
    IFS=: read -r -d '' -a entries <<<"$1:" || true
    for entry in "${entries[@]}"; do
        [[ $entry != /* ]] || kept+=${kept:+:}${entry%$'\n'}
    done
    printf '%s' "$kept"
}

[[ -z ${PYTHONPATH:-} ]] || PYTHONPATH=$(absolute_entries "$PYTHONPATH")
if [[ -d $checkout/src && $checkout != *:* ]]; then
    export PYTHONPATH=$checkout/src${PYTHONPATH:+:$PYTHONPATH}
fi
[[ -n ${PYTHONPATH:-} ]] || unset PYTHONPATH
unset PYTHONSAFEPATH # it would remove a script's folder from the import path

# Print the Python of the stages: the image's if CONTAINER is set, otherwise PYTHON, that of `make install`, or python3.
choose_python() {
    local found=${PYTHON:-$checkout/.venv/bin/python}
    [[ -z ${CONTAINER:-} ]] || found=$checkout/containers/python.sh
    [[ -x $found ]] || found=python3
    echo "$found"
}

# Print the Python of the programs that start stages. It needs no packages, and runs outside the image, because Slurm's
# programs are there.
choose_host_python() {
    local found=$checkout/.venv/bin/python name
    [[ -n ${CONTAINER:-} ]] || { choose_python; return; }
    for name in python3 python3.{11,12,13,14}; do
        [[ ! -x $found ]] || break
        "$name" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && found=$(command -v "$name")
    done
    [[ -x $found ]] || found=python3
    echo "$found"
}

# Refuse a value that is not a number. Bash's arithmetic would execute a command in a text such as a[$(command)], and would
# read a number with a leading zero as octal.
require_number() { # NAME VALUE LEAST
    [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] && (($2 >= $3)) && return
    printf '%s: error: %s=%s: a whole number from %s to 999999999 was expected\n' \
        "$(basename -- "$0")" "$1" "${2//[[:cntrl:]]/?}" "$3" >&2
    exit 2
}

# Replace the calling script by a program of this package, whose messages begin with the script's name.
become() { # SCRIPT PROGRAM WORD ...
    local python
    python=$(choose_host_python)
    [[ -n ${CONTAINER:-} ]] || export PYTHON=$python
    exec "$python" -P -m teacherlm --called "$@"
}
