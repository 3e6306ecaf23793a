#!/usr/bin/env bash
# Install Apptainer on a system without it: unpack Debian's package, which only the newest suite (sid) has, into a folder
# with the C library that it was built for. The system's packages and sources are not changed.
set -euo pipefail

usage="usage: bash containers/get_apptainer.sh [FOLDER]      (as root; default: ~/.cache/teacherlm/apptainer)"
HELPERS=(debootstrap patchelf squashfs-tools squashfuse fuse2fs fuse-overlayfs fuse3 uidmap)
LIBRARIES=(ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libpthread.so.0 libdl.so.2 librt.so.1 libresolv.so.2
    libnss_files.so.2 libnss_dns.so.2 libseccomp.so.2 libsqlite3.so.0)

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
    (($# <= 1)) || { echo "$usage" >&2; exit 2; }
    local folder cache=${XDG_CACHE_HOME:-~/.cache}
    folder=$(realpath -m -- "${1:-$cache/teacherlm/apptainer}")
    [[ -x $folder/bin/apptainer ]] && { "$folder/bin/apptainer" --version; exit 0; }
    if (($(id -u))) || ! command -v apt-get >/dev/null; then
        echo "error: this needs root on Debian; on other systems, install Apptainer as its documentation says" >&2
        exit 2
    fi
    install_helpers
    mkdir -p "$(dirname -- "$folder")"
    work=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    fetch "$work"
    unpack "$work" "$work/whole"
    allow_users
    rm -rf "$folder"
    mv "$work/whole" "$folder"
    "$folder/bin/apptainer" --version
}

install_helpers() {
    local missing=() name
    for name in "${HELPERS[@]}"; do
        dpkg --status "$name" >/dev/null 2>&1 || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    echo "installing ${missing[*]} (Debian packages)"
    apt-get update --quiet --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}" >/dev/null
}

# Download the packages from this machine's mirror, with apt's lists and state in a separate folder.
fetch() { # WORK
    local mirror options
    mirror=$(bash "$(dirname -- "${BASH_SOURCE[0]}")/debian_mirror.sh")
    mkdir -p "$1"/{lists/partial,cache/archives/partial,none,packages}
    : >"$1/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$1/sources.list"
    options=(-o Dir::State="$1" -o Dir::State::lists="$1/lists" -o Dir::State::status="$1/status" -o Dir::Cache="$1/cache"
        -o Dir::Etc::sourcelist="$1/sources.list" -o Dir::Etc::sourceparts="$1/none"
        -o Dir::Etc::preferencesparts="$1/none" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" --quiet --quiet update
    (cd -- "$1/packages" && apt-get "${options[@]}" --quiet --quiet download apptainer libc6 libseccomp2 libsqlite3-0)
}

# Unpack the packages into one folder. Apptainer finds its settings relative to its programs.
unpack() { # WORK WHOLE
    local file program tree=$1/tree libraries
    for file in "$1"/packages/*.deb; do
        dpkg-deb --extract "$file" "$tree"
    done
    libraries=$tree/usr/lib/x86_64-linux-gnu
    mkdir -p "$2"/{bin,libc,lib/x86_64-linux-gnu,var/lib/apptainer/mnt/session}
    cp -a "$tree/usr/bin/apptainer" "$2/bin/"
    cp -a "$libraries/apptainer" "$2/lib/x86_64-linux-gnu/"
    [[ ! -d $tree/usr/libexec ]] || cp -a "$tree/usr/libexec" "$2/"
    cp -a "$tree/etc" "$2/etc"
    for file in "${LIBRARIES[@]}"; do
        cp --dereference "$libraries/$file" "$2/libc/"
    done
    ln -s ../var ../etc "$2/lib/" # the starter, which is in lib/, looks for var and etc in lib/
    # The programs contain the full path of their loader, so they get its path in the final folder.
    for program in bin/apptainer lib/x86_64-linux-gnu/apptainer/bin/starter; do
        patchelf --set-interpreter "$folder/libc/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$folder/libc" "$2/$program"
    done
}

# A build as root with --fakeroot uses these ranges of user ids, and images are mounted through /dev/fuse.
allow_users() {
    local file
    for file in /etc/subuid /etc/subgid; do
        grep -q '^root:' "$file" 2>/dev/null || echo root:100000:65536 >>"$file"
    done
    [[ ! -c /dev/fuse ]] || chmod 666 /dev/fuse
}

main "$@"
