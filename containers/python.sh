#!/usr/bin/env bash
# The image's python, for whoever has CONTAINER set: the stages' scripts and the job scripts take it as their PYTHON.
# The checkout is there read-only; what may be written is RUNS, the folder one is in (if it is not the checkout), the
# caches, and what Apptainer's own APPTAINER_BIND names.
set -euo pipefail

usage="usage: CONTAINER=IMAGE.sif bash containers/python.sh [ARGUMENT ...]"
# What the stages and the libraries under them read from the environment; nothing else gets in.
VARIABLES='^(HF_(HOME|TOKEN|ENDPOINT|HUB_[A-Z_]+|DATASETS_[A-Z_]+)|TEACHERLM_[A-Z_]+|OPENAI_API_KEY|WANDB_[A-Z_]+|(HTTPS?|NO)_PROXY|https?_proxy|no_proxy|OMP_[A-Z_]+|MKL_NUM_THREADS|OPENBLAS_NUM_THREADS|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|NVIDIA_[A-Z_]+|NCCL_[A-Z_]+|GLOO_[A-Z_]+|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|NUM_GPUS|PYTHONUNBUFFERED|PYTHONHASHSEED|TORCH_[A-Z_]+|TOKENIZERS_PARALLELISM|DS_ACCELERATOR|SLURM_[A-Z_]+|RUNS|TZ)$'

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
    [[ -n ${CONTAINER:-} ]] || { echo "$usage" >&2; exit 2; }
    [[ -e $CONTAINER ]] || fail "CONTAINER=$CONTAINER: there is no such image; make container builds one"
    local cache=${XDG_CACHE_HOME:-~/.cache} program name value
    # shellcheck source=containers/apptainer.bash
    source "$(dirname -- "${BASH_SOURCE[0]}")/apptainer.bash"
    program=$(find_apptainer)
    command -v "$program" >/dev/null || fail "there is no apptainer here; docs/how-to/container.md says how to get it"
    root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    export HF_HOME=${HF_HOME:-$cache/huggingface} TEACHERLM_CACHE=${TEACHERLM_CACHE:-$cache/teacherlm}
    options=(--silent exec --cleanenv --contain --pwd "$PWD")
    bind_folders "$@"
    [[ ! -e /dev/nvidiactl ]] || options+=(--nv)
    [[ ! -e /dev/kfd ]] || options+=(--rocm)
    TEACHERLM_IMAGE=$(basename -- "$CONTAINER")@sha256:$(digest)
    TEACHERLM_REVISION=$(git -C "$root" describe --always --dirty=+changes --exclude='*' 2>/dev/null || true)
    export TEACHERLM_IMAGE TEACHERLM_REVISION
    while IFS='=' read -r -d '' name value; do
        [[ ! $name =~ $VARIABLES ]] || export "APPTAINERENV_$name=$value"
    done < <(env --null)
    export APPTAINERENV_PYTHONPATH=$root/src
    exec "$program" "${options[@]}" "$CONTAINER" /opt/venv/bin/python "$@"
}

# Writable: the caches, RUNS, the folder one is in, files for a moment. Readable: the checkout, and what the command names.
bind_folders() { # WORD ...
    local folder word open=("$HF_HOME" "$TEACHERLM_CACHE" ${RUNS:+"$RUNS"})
    [[ $PWD == "$root" || $PWD == "$root"/* ]] || open+=("$PWD")
    mkdir -p "${open[@]}"
    [[ $root$PWD${TMPDIR:-} != *[:,$'\n']* ]] || fail "a colon, comma or line break in the name of the checkout's folder, TMPDIR or this one"
    options+=(--bind "$root:$root:ro" --bind "${TMPDIR:-/tmp}:/tmp" --bind /dev/shm)
    for word in "$@"; do
        word=${word##*=}
        [[ $word != */* || ! -e $word ]] || within "$word" "${open[@]}" || bind "$word" :ro
    done
    for folder in "${open[@]}"; do
        bind "$folder" ""
    done
}

within() { # PATH FOLDER ...: whether a folder holds it, which may then be writable
    local path folder
    path=$(realpath -- "$1")
    for folder in "${@:2}" "$root"; do
        [[ $path/ != "$(realpath -- "$folder")"/* ]] || return 0
    done
    return 1
}

bind() { # PATH OPTION; both as it is called and where it is
    local path
    [[ $1 != *[:,$'\n']* && $(realpath -- "$1") != *[:,$'\n']* ]] ||
        fail "${1//[[:cntrl:]]/?}: with a colon, comma or line break in its name a folder cannot be shown to an image; rename it"
    while read -r path; do
        options+=(--bind "$path:$path$2")
    done < <(printf '%s\n' "$(realpath -- "$1")" "$(realpath -s -- "$1")" | uniq)
}

# The image's digest, read once for an image that stays as it is; of one that was unpacked to a folder, that of its records.
digest() {
    local memory found
    if [[ -d $CONTAINER ]]; then
        cat "$CONTAINER"/opt/image/{packages.txt,files.sha256} | sha256sum | cut -d ' ' -f 1
        return
    fi
    memory=$TEACHERLM_CACHE/images/$(stat --dereference --format='%i-%s-%Y' -- "$CONTAINER")
    if [[ ! -s $memory ]]; then
        mkdir -p "$TEACHERLM_CACHE/images"
        found=$(sha256sum <"$CONTAINER")
        echo "${found%% *}" >"$memory.$$"
        mv "$memory.$$" "$memory"
    fi
    echo "$(<"$memory")"
}

fail() {
    echo "error: $1" >&2
    exit 2
}

main "$@"
