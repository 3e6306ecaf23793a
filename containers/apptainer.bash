# shellcheck shell=bash
# Where Apptainer is: the system's, or the one that get_apptainer.sh installed. Sourced by the scripts here.

find_apptainer() { # prints it
    command -v apptainer || echo "${XDG_CACHE_HOME:-$HOME/.cache}/teacherlm/apptainer/bin/apptainer"
}

# Root need not have all of root's rights, within another container say.
(($(id -u))) || export APPTAINER_USERNS=1
