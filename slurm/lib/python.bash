# shellcheck shell=bash
# Which python the scripts start: that of the image when CONTAINER names one, PYTHON, that of `make install`, or python3.
# Sourced by the scripts; the folder that they are called in is never one from which a module is imported. So a module
# and a line of code are run with -P (or -I). A script of ours (python FILE.py) has its own folder on the import path.

# An empty entry of PYTHONPATH (`export PYTHONPATH=/mine:$PYTHONPATH` makes one) means the current folder, and so would one
# that is not absolute.
absolute_entries() { # PATHS: prints those that are absolute
    local entry entries kept=
    IFS=: read -r -d '' -a entries <<<"$1:" || true
    for entry in "${entries[@]}"; do
        [[ $entry != /* ]] || kept+=${kept:+:}${entry%$'\n'}
    done
    printf '%s' "$kept"
}

[[ -z ${PYTHONPATH:-} ]] || PYTHONPATH=$(absolute_entries "$PYTHONPATH")
[[ -n ${PYTHONPATH:-} ]] || unset PYTHONPATH
unset PYTHONSAFEPATH # with it a script would lack its own folder

# Numbers that reach bash's arithmetic, which would execute what stands in a text such as a[$(command)], and names of
# folders. A number has no leading zero: bash would read it as an octal one.
require_number() { # NAME VALUE LEAST
    [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] && (($2 >= $3)) && return
    printf '%s: error: %s=%s: a whole number from %s to 999999999 was expected\n' \
        "$(basename -- "$0")" "$1" "${2//[[:cntrl:]]/?}" "$3" >&2
    exit 2
}

choose_python() { # ROOT: prints it
    local found=${PYTHON:-$1/.venv/bin/python}
    [[ -z ${CONTAINER:-} ]] || found=$1/containers/python.sh
    [[ -x $found ]] || found=python3
    echo "$found"
}
