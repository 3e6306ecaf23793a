# shellcheck shell=bash
# Where Apptainer is: the system's, or the one that get_apptainer.sh installed. Sourced by the scripts here.

find_apptainer() { # prints it
    local cache=${XDG_CACHE_HOME:-~/.cache}
    command -v apptainer || echo "$cache/teacherlm/apptainer/bin/apptainer"
}

# Root need not have all of root's rights, within another container say.
(($(id -u))) || export APPTAINER_USERNS=1
