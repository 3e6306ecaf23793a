# shellcheck shell=bash disable=SC2034  # much of it is used by who sources it
# What a chain is made of: names, folders and kinds of explanation, from the variables that `chain.sh --help` lists.
# Sourced by chain.sh and by the jobs; `root` is the checkout.

SAVED=(STUDENT MODEL TEACHER TASK LIMIT EPOCHS SEED NUM_TOKENS TEMPERATURE MAX_FAILURES FILTER BATCH ACCUMULATION
    LEARNING_RATE TOKENIZATION SHARDS RUNS PYTHON WANDB_PROJECT REPORT_TO SIGNAL_SECONDS SITE CONTAINER APPTAINER_BIND)
# The variables that a job must have as they were at submission; and the benchmark's own, data_variable.

# shellcheck source=slurm/lib/python.bash
source "$root/slurm/lib/python.bash"

settings() { # BENCHMARK
    local data_variable values
    benchmark=$1
    check_variables
    [[ -z ${CONTAINER:-} ]] || use_container
    PYTHON=$(choose_python "$root")
    export PYTHON
    export PYTHONUNBUFFERED=1
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # threads that spin for one another stand still on a shared node

    student=${STUDENT:-${MODEL:-smollm2-135m}} task=${TASK:-cot_tail}
    teacher=${TEACHER:-$student} seed=${SEED:-0} epochs=${EPOCHS:-10} temperature=${TEMPERATURE:-1} shards=${SHARDS:-1}
    tokenization=${TOKENIZATION:-auto}
    [[ $tokenization =~ ^(auto|apart|joint)$ ]] || fail "TOKENIZATION=$tokenization: auto, apart or joint was expected"
    data_variable=$(data_variable "$benchmark")
    data=${!data_variable:-}

    find_kinds
    check_filter

    title=$("$PYTHON" -P -m teacherlm.catalog.benchmarks title "$benchmark")
    values=$("$PYTHON" -P -m teacherlm.catalog.models get "$student" \
        name finetune.batch finetune.accumulation finetune.learning_rate finetune.gradient_checkpointing)
    mapfile -t recommended <<<"$values"
    student_name=${recommended[0]}
    values=$("$PYTHON" -P -m teacherlm.catalog.models get "$teacher" name enhance.num_tokens)
    mapfile -t teacher_values <<<"$values"
    teacher_name=${teacher_values[0]}

    # Where things go. A name tells what a folder depends on, so that another student, task or seed is another folder.
    run_folder=${RUNS:-runs}/$benchmark/${LIMIT:+limit-}${LIMIT:-all}
    prepared=$run_folder/prepare
    enhanced=$run_folder/enhance/${teacher_name}_seed$seed
    store=$run_folder/finetune
    run_name=${student_name}_${task//[:,]/-}
    [[ $task == text ]] || run_name+=_$teacher_name
    run_name+=${FILTER:+_without-${FILTER//,/-}}
    run_name+=${BATCH:+_batch$BATCH}${ACCUMULATION:+_accumulation$ACCUMULATION}${LEARNING_RATE:+_lr$LEARNING_RATE}_seed$seed
    evaluated=$run_folder/evaluate
    chain=$run_folder/chains/$run_name

    summary="$benchmark: student $student_name, teacher $teacher_name, task $task, seed $seed; all goes to $run_folder"

    stages=(prepare enhance merge finetune evaluate report)
    trained_on=$enhanced/$title${FILTER:+_without-${FILTER//,/-}}
    if ((${#kinds[@]} == 0)); then
        stages=(prepare finetune evaluate report)
        trained_on=$prepared/$title
        [[ -z ${FILTER:-} ]] || fail "FILTER=$FILTER drops samples by their explanations; TASK=$task has none"
    fi
}

# creak -> CREAK_DATA, my-claims_2 -> MY_CLAIMS_2_DATA: the folder with the benchmark's files.
data_variable() { # BENCHMARK
    local LC_ALL=C name
    name=${1//[^A-Za-z0-9]/_}
    name=${name^^}_DATA
    [[ $name != [0-9]* ]] || name=_$name # no variable begins with a digit
    echo "$name"
}

# They become numbers of jobs, folders' names and flags: what is none is refused before anything is made of it.
check_variables() {
    local name number='[0-9]{1,9}([.][0-9]{0,20})?([eE][-+]?[0-9]{1,3})?|[.][0-9]{1,20}'
    for name in LIMIT EPOCHS NUM_TOKENS SHARDS BATCH ACCUMULATION; do
        [[ -z ${!name:-} ]] || require_number "$name" "${!name}" 1
    done
    for name in SEED MAX_FAILURES; do
        [[ -z ${!name:-} ]] || require_number "$name" "${!name}" 0
    done
    for name in TEMPERATURE LEARNING_RATE; do
        [[ -z ${!name:-} || ${!name} =~ ^($number)$ ]] || fail "$name=${!name}: a number was expected"
    done
    ((${EPOCHS:-1} < 10000 && ${SHARDS:-1} < 10000)) || fail "EPOCHS and SHARDS: fewer than 10000 were expected"
}

# The image's python sees what it is told of: the folder that all goes to, and the image from wherever a job starts.
use_container() {
    [[ -e $CONTAINER ]] || fail "CONTAINER=$CONTAINER: there is no such image; make container builds one"
    CONTAINER=$(realpath -- "$CONTAINER")
    RUNS=$(realpath -m -- "${RUNS:-runs}")
    export CONTAINER RUNS
}

# The kinds of explanation that the task is made of: `kinds`. A task is a field, or several: text:1,cot_tail:2
find_kinds() {
    local part parts
    kinds=()
    [[ $task =~ ^[a-z_]+(:[0-9.]+)?(,[a-z_]+(:[0-9.]+)?)*$ ]] ||
        fail "TASK=$task: a field, or fields as text:1,cot_tail:2, was expected"
    IFS=, read -r -a parts <<<"$task"
    for part in "${parts[@]}"; do
        case ${part%%:*} in
            text) ;;
            cot_tail | cot | all) kinds+=(cot) ;;
            error_tail | error) kinds+=(error) ;;
            fundamental_tail | fundamental) kinds+=(fundamental) ;;
            full_tail) kinds+=(cot error fundamental) ;;
            *) fail "no task type '$part'; there are: text, cot_tail, error_tail, fundamental_tail, full_tail, all" ;;
        esac
    done
    mapfile -t kinds < <(printf "%s\n" "${kinds[@]}" | sed "/^$/d" | sort -u)
}

# Said at once, not when the teacher has explained everything: the flags of src/teacherlm/dataset/quality.py.
check_filter() {
    local flag flags
    IFS=, read -r -a flags <<<"${FILTER:-}"
    for flag in "${flags[@]}"; do
        case $flag in
            empty | cut | repeats | copies | language | contradicts | duplicate | overlap) ;;
            *) fail "FILTER: there is no flag '$flag'; there are: empty, cut, repeats, copies, language, contradicts, duplicate, overlap" ;;
        esac
    done
}

# Without characters that a terminal would obey.
fail() { # MESSAGE
    echo "chain.sh: error: ${1//[[:cntrl:]]/?}" >&2
    exit 2
}
