# shellcheck shell=bash
# The path of Apptainer: the system's, or the one that get_apptainer.sh installed. The scripts here source this file.

find_apptainer() { # prints the path
    local cache=${XDG_CACHE_HOME:-~/.cache}
    command -v apptainer || echo "$cache/teacherlm/apptainer/bin/apptainer"
}

# Within another container, root may lack some of root's rights.
(($(id -u))) || export APPTAINER_USERNS=1
