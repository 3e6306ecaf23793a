#!/usr/bin/env bash
# Build an image from its lock. This machine's pip downloads the packages into the user's cache, with its index, proxy and
# certificates, and the image installs them from there. None of these settings gets into the image.
set -euo pipefail

usage() {
    cat <<'END'
usage: [IMAGE=cpu|gpu] [OUTPUT=FILE.sif] bash containers/build.sh      (or: make container)

  IMAGE           the lock to use: containers/cpu.lock or containers/gpu.lock           cpu
  OUTPUT          the image file to write                                               teacherlm-IMAGE.sif
  DEBIAN_MIRROR   the address of the mirror of the base system                          the mirror of this machine's apt

example: IMAGE=cpu OUTPUT=teacherlm-cpu.sif bash containers/build.sh
END
}

PACKAGES="python3.11 python3.11-venv python3-distutils python3.11-dev ca-certificates gcc g++" # Debian's; the CPU image removes the compilers

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
    (($# == 0)) || { usage >&2; exit 2; }
    root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    image=${IMAGE:-cpu} cache=${XDG_CACHE_HOME:-~/.cache}/teacherlm
    [[ $image == cpu || $image == gpu ]] || { echo "error: IMAGE=$image: cpu or gpu was expected" >&2; exit 2; }
    output=$(realpath -m -- "${OUTPUT:-$root/teacherlm-$image.sif}")
    apptainer=apptainer
    if ! command -v apptainer >/dev/null; then
        bash "$root/containers/get_apptainer.sh"
        apptainer=$cache/apptainer/bin/apptainer
    fi
    wheels=$cache/wheels/$image
    bash "$root/containers/fetch_wheels.sh" "$image" "$wheels"
    mkdir -p "$(dirname -- "$output")"
    work=$(mktemp -d "$output.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    stage_source
    build
    mv "$work/image.sif" "$output"
    echo "$output: $(du --apparent-size --human-readable "$output" | cut -f 1), sha256 $(sha256sum <"$output" | cut -d ' ' -f 1)"
}

# Copy the files that git tracks, in their current state.
stage_source() {
    mkdir -p "$work"/source "$work"/image
    git -C "$root" ls-files -z | (cd -- "$root" && tar --create --null --files-from=- --ignore-failed-read) |
        tar --extract --directory "$work/source"
    git -C "$root" describe --always --dirty=+changes --exclude="*" >"$work/image/revision"
}

build() {
    local arguments=$work/arguments log=$output.log
    cat >"$arguments" <<END
IMAGE=$image
MIRROR=$(bash "$root/containers/debian_mirror.sh")
PACKAGES=$PACKAGES
STAGE=$work
NAME=$(basename -- "$output")
VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
REVISION=$(<"$work/image/revision")
TORCH=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' "$root/containers/$image.lock")
LOCK_DIGEST=$(sha256sum <"$root/containers/$image.lock" | cut -d ' ' -f 1)
END
    (umask 077 && : >"$log") # the log may contain a mirror's address with a password
    echo "building (log: $log)"
    "$apptainer" build --fakeroot --force --bind "$wheels:/mnt" --mksquashfs-args "-comp zstd -Xcompression-level 3" \
        --build-arg-file "$arguments" "$work/image.sif" "$root/containers/teacherlm.def" >"$log" 2>&1 ||
        { tail -n 40 "$log" >&2; echo "error: the image was not built; the complete log is $log" >&2; exit 1; }
    rm "$log"
}

main "$@"
