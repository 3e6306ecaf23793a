#!/usr/bin/env bash
# Install the packages of a lock and this project within an image that is being built, and record what the image contains.
# The packages come from wheels that were downloaded before; the project's files are in /opt/teacherlm. teacherlm.def and
# the Dockerfile use this script.
set -euo pipefail

usage="usage: bash containers/install.sh cpu|gpu WHEELS      (within an image that is being built)"
source=/opt/teacherlm
venv=/opt/venv

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
    (($# == 2)) && [[ $1 == cpu || $1 == gpu ]] && [[ -d $2 ]] || { echo "$usage" >&2; exit 2; }
    image=$1 wheels=$2 lock=$source/containers/$1.lock
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    work=/opt/build # not in /tmp, because a build may share /tmp with its machine
    mkdir -p "$work"
    export TMPDIR=$work
    python3.11 -I -m venv "$venv"
    install_packages
    install_project
    [[ $image == gpu ]] || remove_tools # the GPU image keeps the compiler, because Triton compiles at run time
    remove_unused
    mkdir -p /opt/image
    record
    rm -rf "$work" /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb
}

# Install the wheels first, then the packages that are built with them: DeepSpeed with its operators.
install_packages() {
    local sources=() file name
    for file in "$wheels"/*.tar.gz "$wheels"/*.zip; do
        [[ -e $file ]] || continue
        name=$(basename -- "$file")
        sources+=("${name%-*}")
    done
    for name in "${sources[@]}"; do echo "^${name//_/[-_]}==" ; done >"$work/built"
    grep --invert-match --file="$work/built" "$lock" >"$work/wheels.lock"
    grep --file="$work/built" "$lock" >"$work/built.lock" || true
    "$venv/bin/pip" install --quiet --no-deps --require-hashes -r "$work/wheels.lock"
    [[ -s $work/built.lock ]] || return 0
    operators
    PATH=$venv/bin:$PATH "$venv/bin/pip" install --quiet --no-deps --use-pep517 --no-build-isolation --require-hashes -r "$work/built.lock"
}

# Choose the operators that are compiled with DeepSpeed: those that the configurations in finetune/deepspeed use. Otherwise
# each job would compile them. On CPUs, it is the operator with which processes communicate through shared memory.
operators() {
    local file
    export MAX_JOBS=${MAX_JOBS:-$(nproc)}
    if [[ $image == cpu ]]; then
        export DS_ACCELERATOR=cpu DS_BUILD_SHM_COMM=1
        return
    fi
    export DS_ACCELERATOR=cuda DS_BUILD_FUSED_ADAM=1 DS_BUILD_CPU_ADAM=1 TORCH_CUDA_ARCH_LIST="8.0;9.0"
    CUDA_HOME=$(dirname -- "$(dirname -- "$(find "$venv" -path '*/bin/nvcc' -print -quit)")")
    export CUDA_HOME
    for file in "$CUDA_HOME"/lib/lib*.so.*; do # the linker needs names without versions, and the wheels do not have them
        [[ -e ${file%%.so.*}.so ]] || ln --symbolic "$(basename -- "$file")" "${file%%.so.*}.so"
    done
    compile_for_any_machine
}

# DeepSpeed compiles CPU Adam for the processor of the building machine, but an image must also run on others. All machines
# with these GPUs have AVX2.
compile_for_any_machine() {
    local name
    mkdir -p "$work/bin"
    for name in gcc g++; do
        cat >"$work/bin/$name" <<END
#!/bin/bash
arguments=("\${@/#-march=native/-march=x86-64-v3}")
exec /usr/bin/$name "\${arguments[@]/#-D__AVX512__/-D__AVX256__}"
END
        chmod +x "$work/bin/$name"
        ln --symbolic --force "$name" "$work/bin/x86_64-linux-gnu-$name"
    done
    PATH=$work/bin:$PATH
}

# Install the project's wheel, made from the files in $source. The image then keeps only the files that start and test it.
install_project() {
    local name
    "$venv/bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/project" "$source"
    "$venv/bin/pip" install --quiet --no-deps "$work"/project/teacherlm-*.whl
    "$venv/bin/pip" uninstall --quiet --yes pip
    mkdir "$work/kept"
    for name in LICENSE containers/{run.sh,test.sh,"$image.lock"}; do
        install -D --mode=644 "$source/$name" "$work/kept/$name"
    done
    find "$source" -mindepth 1 -delete
    cp --recursive "$work/kept/." "$source"
}

# Record every package with a digest, and the digest of each of the project's files. A Debian package's digest is that of
# its list of files' digests, which is empty for packages without files.
record() {
    local name version architecture
    {
        dpkg-query --show --showformat='${binary:Package} ${Version} ${Architecture}\n' | while read -r name version architecture; do
            echo "debian ${name%:*} $version $architecture $(cat "/var/lib/dpkg/info/$name.md5sums" 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
        done
        sed -n 's/^\([^#=]*\)==\([^ ]*\) --hash=sha256:\(.*\)/python \1 \2 \3/p' "$lock"
    } | LC_ALL=C sort >/opt/image/packages.txt
    cd /opt
    find teacherlm "${venv#/opt/}"/lib/python3.11/site-packages/teacherlm -type f ! -name '*.pyc' -print0 |
        LC_ALL=C sort --zero-terminated | xargs -0 sha256sum >/opt/image/files.sha256
}

# Remove the compiler and its dependencies.
remove_tools() {
    local keep=(python3.11 python3.11-venv ca-certificates)
    export DEBIAN_FRONTEND=noninteractive
    apt-mark showmanual | xargs --no-run-if-empty apt-mark auto >/dev/null
    apt-mark manual "${keep[@]}" >/dev/null
    apt-get autoremove --purge --quiet --quiet --yes >/dev/null
}

# Remove what no stage uses: the packages' tests, and Debian's translations and manuals (but not the licences).
remove_unused() {
    find "$venv/lib" -type d -name tests -prune -exec rm -rf {} +
    rm -rf "$venv"/lib/python3.11/site-packages/torch/{test,bin/test_*} /usr/share/{info,locale,man}/*
    [[ $image == gpu ]] || rm -rf "$venv/lib/python3.11/site-packages/torch/include"
    find /usr/share/doc -type f ! -name copyright -delete
}

main "$@"
