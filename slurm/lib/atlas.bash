# shellcheck shell=bash disable=SC2034  # much of it is used by who sources it
# The chains of ATLAS on MMLU, in place of those of settings.bash and stages.bash: what they are made of and their stages.

SAVED=(DATA_DIR SIZE MODEL_PATH INDEX_PATH PASSAGES READER RETRIEVER PRECISION MMLU_DATA FLAGS EXPERIMENT_NAME
    NUM_GPUS RUNS PYTHON SIGNAL_SECONDS SITE CONTAINER APPTAINER_BIND)

settings() { # atlas-SETTING
    benchmark=$1 setting=${1#atlas-}
    case $setting in
        zeroshot) stages=(prepare evaluate score report) tree=5-shot-multitask ;;
        5-shot | 5-shot-multi) stages=(prepare train score report) tree=5-shot-multitask ;;
        full) stages=(prepare train score report) tree=full ;;
        *) fail "there is no $1; there are: atlas-zeroshot, atlas-5-shot, atlas-5-shot-multi, atlas-full" ;;
    esac
    [[ -n ${DATA_DIR:-} ]] || fail "DATA_DIR is not set; it holds the questions, models and indices (docs/atlas.md)"
    [[ -z ${CONTAINER:-} ]] || use_container
    DATA_DIR=$(realpath -m -- "$DATA_DIR")
    PYTHON=$(choose_python "$root")
    export PYTHON DATA_DIR
    export PYTHONUNBUFFERED=1
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
    size=${SIZE:-xl}
    run_name=${EXPERIMENT_NAME:-$size-mmlu-$setting}
    [[ $run_name =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] || fail "EXPERIMENT_NAME or SIZE: $run_name: a folder's name was expected"
    run_folder=${RUNS:-runs}/atlas/$setting
    chain=$run_folder/chains/$run_name
    results=$DATA_DIR/experiments/$run_name
    read -r -a flags <<<"${FLAGS:-}"
    summary="ATLAS on MMLU, $setting, $size; results go to $results"
}

stage_prepare() {
    local source=()
    [[ ! -d ${MMLU_DATA:-} ]] || source=(--data_directory "$MMLU_DATA")
    [[ ! -f ${MMLU_DATA:-} ]] || source=(--data_tar "$MMLU_DATA")
    RUNS=$DATA_DIR exec "$PYTHON" "$root/atlas/preprocessing/prepare_mmlu.py" --output_directory "$DATA_DIR" "${source[@]}" "$@"
}

stage_evaluate() {
    EXPERIMENT_NAME=$run_name SIZE=$size exec bash "$root/atlas/examples/mmlu/mmlu-$setting.sh" "${flags[@]}" "$@"
}

stage_train() { # [DOMAIN's number]; without one all of them, one by one
    if [[ ${1:-} =~ ^(0|[1-9][0-9]{0,5})$ ]]; then
        export DOMAIN
        DOMAIN=$(domains | sed -n "$(($1 + 1))p")
        [[ -n $DOMAIN ]] || { echo "train: there are fewer domains"; exit 0; }
        shift
    fi
    stage_evaluate "$@"
}

# Of the 5-shot setting by the manifests alone: asking train.py 57 times would take minutes. Each looks for itself, too.
missing_train() {
    local number=0 domain
    is_array train || { NUM_GPUS=0 stage_train --list_missing; return; }
    while read -r domain; do
        [[ -f $results/$domain/manifest.json ]] || echo "$number"
        ((number += 1))
    done < <(domains)
}

domains() {
    local file name
    for file in "$DATA_DIR"/data/mmlu_data/5-shot/individual_train/*.5-shot-train.jsonl; do
        [[ -f $file ]] || continue
        name=$(basename -- "$file" .5-shot-train.jsonl)
        [[ ! $name =~ ^[A-Za-z0-9_-]+$ ]] || echo "$name" # no other is a domain of MMLU
    done
}

stage_score() {
    local gold=$DATA_DIR/data/mmlu_data/$tree which=("$results" --select-step "$DATA_DIR/data/mmlu_data/$tree/combined_valid.jsonl")
    [[ $setting != zeroshot ]] || which=("$results/combined_test-step-0.jsonl")
    RUNS=$DATA_DIR exec "$PYTHON" "$root/atlas/evaluation_scripts/evaluate_mmlu_predictions.py" \
        --gold_path "$gold/combined_test.jsonl" --predictions_path "${which[@]}" "$@"
}

stage_report() { # of all experiments that are there
    RUNS=$DATA_DIR exec "$PYTHON" -P -m teacherlm report "$DATA_DIR/experiments"
}

tasks_of() { # STAGE
    local count
    if is_array "$1"; then
        count=$(domains | wc -l)
        seq 0 $((${count/#0/57} - 1)) # before they are prepared: as many as MMLU has
    else
        echo 0
    fi
}

is_array() { # STAGE
    [[ $1 == train && $setting == 5-shot ]]
}

lock_of() { # STAGE TASK
    echo "$(work_of "$1")-$2"
}

work_of() { # STAGE
    case $1 in
        prepare) echo "prepare-$(cksum <<<"$DATA_DIR" | cut -d ' ' -f 1)" ;;
        *) echo "$1-$run_name" ;;
    esac
}

# The reference's eight nodes of eight GPUs are for its largest model; site.env says what this site gives (ATLAS_ARGS).
resources() { # STAGE
    request=(--cpus-per-task=2 --mem=16G --time=04:00:00
        ${CPU_PARTITION:+--partition="$CPU_PARTITION"} "${SBATCH_ARGS[@]}" "${CPU_ARGS[@]}")
    [[ $1 == evaluate || $1 == train ]] || return 0
    local gpus=8
    request=(--nodes=1 --ntasks-per-node="$gpus" --cpus-per-task=8 --mem=0 --time=08:00:00
        ${PARTITION:+--partition="$PARTITION"} --gres="gpu:${GPU_TYPE:+$GPU_TYPE:}$gpus" "${SBATCH_ARGS[@]}" "${ATLAS_ARGS[@]}")
}

require_models() {
    local wanted
    for wanted in "${MODEL_PATH:-$DATA_DIR/models/atlas/$size}" "${INDEX_PATH:-$DATA_DIR/indices/atlas/wiki/$size}"; do
        [[ $wanted == none || -e $wanted || ($wanted == */indices/* && -n ${PASSAGES:-}) ]] ||
            fail "$wanted is not there, and jobs have no internet: atlas/preprocessing/download_*.py fetch it (docs/atlas.md)"
    done
}

heading() {
    printf '\n== %s\n' "$1"
}
