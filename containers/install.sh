#!/usr/bin/env bash
# Within an image that is being built: install what its lock names, from wheels that were fetched before, and the project,
# whose files are in /opt/teacherlm, as a wheel; record all that is in the image. Used by teacherlm.def and the Dockerfile.
set -euo pipefail

usage="usage: bash containers/install.sh cpu|gpu WHEELS      (within an image that is being built)"
source=/opt/teacherlm
venv=/opt/venv

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
    (($# == 2)) && [[ $1 == cpu || $1 == gpu ]] && [[ -d $2 ]] || { echo "$usage" >&2; exit 2; }
    image=$1 wheels=$2 lock=$source/containers/$1.lock
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    work=/opt/build # not in /tmp, which a build may share with the machine that it runs on
    mkdir -p "$work"
    export TMPDIR=$work
    python3.11 -I -m venv "$venv"
    install_packages
    install_project
    [[ $image == gpu ]] || remove_tools # Triton compiles at run time, so the GPU image keeps its compiler
    remove_unused
    mkdir -p /opt/image
    record
    rm -rf "$work" /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb
}

# First what are wheels, then what has to be built with them at hand: DeepSpeed, with its operators.
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

# DeepSpeed's operators that the configurations in finetune/deepspeed use; otherwise each job would compile them. On CPUs
# two processes share memory.
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
    for file in "$CUDA_HOME"/lib/lib*.so.*; do # the linker wants names without versions, which the wheels do not have
        [[ -e ${file%%.so.*}.so ]] || ln --symbolic "$(basename -- "$file")" "${file%%.so.*}.so"
    done
    compile_for_any_machine
}

# DeepSpeed compiles CPU Adam for the very processor that builds it; an image is for others too. AVX2 is in all that
# have these GPUs.
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

# The project's own wheel, from the files in $source. Of these the image keeps only what starts and tests it.
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

# Every package with the digest of what was installed (of a Debian package: of its own list of its files' digests; some
# have no files), and the digest of each of the project's files.
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

# The compiler and what came with it.
remove_tools() {
    local keep=(python3.11 python3.11-venv ca-certificates)
    export DEBIAN_FRONTEND=noninteractive
    apt-mark showmanual | xargs --no-run-if-empty apt-mark auto >/dev/null
    apt-mark manual "${keep[@]}" >/dev/null
    apt-get autoremove --purge --quiet --quiet --yes >/dev/null
}

# What no stage uses: the packages' own tests, and of Debian's the translations and manuals (not the licences).
remove_unused() {
    find "$venv/lib" -type d -name tests -prune -exec rm -rf {} +
    rm -rf "$venv"/lib/python3.11/site-packages/torch/{test,bin/test_*} /usr/share/{info,locale,man}/*
    [[ $image == gpu ]] || rm -rf "$venv/lib/python3.11/site-packages/torch/include"
    find /usr/share/doc -type f ! -name copyright -delete
}

main "$@"
