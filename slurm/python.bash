# shellcheck shell=bash
# Which python the scripts start. Sourced by them; the folder that they are called in is never one from which a module is
# imported. So a module and a line of code are run with -P (or -I). A script of ours (python FILE.py) has its own folder on
# the import path.

checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# An empty entry of PYTHONPATH (`export PYTHONPATH=/mine:$PYTHONPATH` makes one) means the current folder, and so would one
# that is not absolute. The code of this checkout comes first, whatever is installed.
absolute_entries() { # PATHS: prints those that are absolute
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
unset PYTHONSAFEPATH # with it a script would lack its own folder

# The python of the stages: the image's when CONTAINER names one, PYTHON, that of `make install`, or python3.
choose_python() {
    local found=${PYTHON:-$checkout/.venv/bin/python}
    [[ -z ${CONTAINER:-} ]] || found=$checkout/containers/python.sh
    [[ -x $found ]] || found=python3
    echo "$found"
}

# The python of what starts the stages, which needs no packages: it runs outside of the image, where Slurm's programs are.
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

# Numbers that reach bash's arithmetic, which would execute what stands in a text such as a[$(command)]. A number has no
# leading zero: bash would read it as an octal one.
require_number() { # NAME VALUE LEAST
    [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] && (($2 >= $3)) && return
    printf '%s: error: %s=%s: a whole number from %s to 999999999 was expected\n' \
        "$(basename -- "$0")" "$1" "${2//[[:cntrl:]]/?}" "$3" >&2
    exit 2
}

# In place of the script that calls it: a program of this package, whose messages begin with the script's name.
become() { # SCRIPT PROGRAM WORD ...
    local python
    python=$(choose_host_python)
    [[ -n ${CONTAINER:-} ]] || export PYTHON=$python
    exec "$python" -P -m teacherlm --called "$@"
}
