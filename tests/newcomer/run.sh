#!/usr/bin/env bash
# Do what a new user does, in a minimal Debian: an ordinary user with LANG=C and a space in the home folder's name installs
# the packages that the README names and runs its commands. `make test-newcomer` calls this.
# The Debians have Python 3.11 (bookworm), 3.13 (trixie) and 3.14 (forky).
set -euo pipefail

usage="usage: bash run.sh bookworm|trixie|forky [FOLDER]      (as root, with debootstrap; FOLDER is for the root file systems)"
PACKAGES=python3,make,git,ca-certificates # the README's packages without python3-venv, which is missing at first

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
    (($# == 1 || $# == 2)) && [[ $1 =~ ^(bookworm|trixie|forky)$ ]] || { echo "$usage" >&2; exit 2; }
    if (($(id -u))) || ! command -v debootstrap >/dev/null; then
        fail "root and debootstrap are needed (apt-get install debootstrap)"
    fi
    checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
    suite=$1 cache=${2:-${XDG_CACHE_HOME:-~/.cache}/teacherlm/newcomer}
    base=$cache/$suite root=$cache/$suite.now home="/home/a newcomer"
    [[ -e $base/etc/os-release ]] || make_base
    trap leave EXIT
    enter
    without_venv
    step "make install" as_newcomer make install
    step "make demo" as_newcomer make demo
    grep -q 'accuracy on 80 test questions of sample' "$log" || fail "make demo printed no table"
    tail -n 3 "$log" | head -n 1 | grep -q '^Look at the page' || fail "make demo does not end by saying what to look at"
    step "make demo, with nothing to do" as_newcomer make demo
    echo "$(du -sm "$root$home/teacherlm/.venv" | cut -f 1) MB: .venv"
    mount --bind -o ro "$root$home/teacherlm" "$root$home/teacherlm"
    step "make demo in a checkout that cannot be written, RUNS elsewhere" as_newcomer env RUNS="$home/runs" LIMIT=4 EPOCHS=1 NUM_TOKENS=4 make demo
    umount "$root$home/teacherlm"
    step "make test-fast" as_newcomer make test-fast
}

make_base() {
    local mirror
    mirror=$(bash "$checkout/containers/debian_mirror.sh")
    mkdir -p "$cache"
    rm -rf "$base.partial"
    echo "debootstrap $suite"
    # The script is the same for all three; an older debootstrap does not know a newer Debian's name.
    debootstrap --variant=minbase --include="$PACKAGES" "$suite" "$base.partial" "$mirror" /usr/share/debootstrap/scripts/sid \
        >"$base.log" 2>&1 ||
        { tail -n 5 "$base.log" >&2; exit 1; }
    mv "$base.partial" "$base"
}

# Copy the base system, clone the project into the user's home, and add what this machine needs to reach the package index.
enter() {
    leave
    cp --archive "$base" "$root"
    chroot "$root" useradd --create-home --home-dir "$home" --shell /bin/bash newcomer
    git clone --quiet --no-local "$checkout" "$root$home/teacherlm"
    chroot "$root" chown --recursive newcomer: "$home"
    log=$cache/$suite.txt
    mount --types proc proc "$root/proc"
    make_devices
    local path
    cp --dereference /etc/resolv.conf /etc/hosts "$root/etc/"
    for path in /etc/ssl/certs /etc/pip.conf /etc/xdg/pip $(pip_folders); do
        [[ -e $path ]] || continue
        if [[ -d $path ]]; then mkdir --parents "$root$path"; else : >>"$root$path"; fi
        mount --bind -o ro "$path" "$root$path"
    done
}

# The devices that programs need. They are separate from those of this machine, which a program in the root could change.
make_devices() {
    local name major minor
    mount --types tmpfs -o mode=755 none "$root/dev"
    while read -r name major minor; do
        mknod -m 666 "$root/dev/$name" c "$major" "$minor"
    done <<<$'null 1 3\nzero 1 5\nfull 1 7\nrandom 1 8\nurandom 1 9\ntty 5 0'
    mkdir -m 1777 "$root/dev/shm"
    ln -s /proc/self/fd "$root/dev/fd"
}

# Print the folders of this machine that pip's settings name.
pip_folders() {
    { env | sed -n 's/^PIP_[A-Z_]*=//p'; python3 -I -m pip config list 2>/dev/null | sed "s/^[^=]*='\(.*\)'$/\1/"; } |
        tr ' ' '\n' | sed 's,^file://,,' | grep '^/' | while read -r path; do [[ ! -d $path ]] || echo "$path"; done | sort --unique
}

leave() {
    local place
    awk -v root="$root" 'index($2, root "/") == 1 {print $2}' /proc/mounts | tac | while read -r place; do
        umount --lazy "$(printf '%b' "$place")"
    done
    rm -rf --one-file-system "$root"
}

as_newcomer() { # COMMAND ...
    local settings=()
    mapfile -t settings < <(env | grep -E '^(PIP_|UV_|(HTTPS?|NO)_PROXY=|https?_proxy=|no_proxy=|TORCH=|SSL_CERT_|REQUESTS_CA_BUNDLE=)' || true)
    # shellcheck disable=SC2016  # the inner shell expands it
    chroot --userspec=newcomer:newcomer "$root" env -i HOME="$home" LANG=C PATH=/usr/local/bin:/usr/bin:/bin TMPDIR=/tmp "${settings[@]}" \
        bash -c 'cd -- "$HOME/teacherlm" && exec "$@"' - "$@"
}

# The first command fails with one line, which gives the command that fixes it, and makes nothing.
without_venv() {
    local said
    said=$(as_newcomer make demo 2>&1 >/dev/null) && fail "make demo succeeded without venv"
    [[ $said == *"apt-get install python3."*"-venv"* ]] || fail "without venv it says: $said"
    [[ ! -e $root$home/teacherlm/.venv ]] || fail "a half-made .venv was left"
    echo "without python3-venv: $(head -n 1 <<<"$said")"
    DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install --quiet --quiet --yes --no-install-recommends python3-venv >/dev/null 2>&1 ||
        { chroot "$root" apt-get update --quiet --quiet && chroot "$root" apt-get install --quiet --quiet --yes --no-install-recommends python3-venv >/dev/null; }
}

step() { # NAME COMMAND ...
    local TIMEFORMAT="%0R s, %0U s of processor time: $1"
    time "${@:2}" >"$log" 2>&1 || { tail -n 20 "$log" >&2; fail "$1 failed; the complete log is $log"; }
}

fail() {
    echo "error: $1" >&2
    exit 1
}

main "$@"
