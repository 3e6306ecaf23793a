# shellcheck shell=bash
# The chain: its stages in the order of the data, each of which waits for the one before. Run in a subshell, for it ends
# with `exec`: then a signal to that process reaches the stage itself. Further words go to the stage's script.

stage_prepare() {
    exec "$PYTHON" "$root/enhance/data_prepare.py" --benchmark "$benchmark" --output_dir "$prepared" \
        --test_dir "$prepared/test" ${data:+--data "$data"} ${LIMIT:+--limit "$LIMIT"} "$@"
}

stage_enhance() { # SHARD; all kinds in one pass, with one loaded teacher
    local task_types
    task_types=$(IFS=, && echo "${kinds[*]/%/_text}")
    exec bash "$root/enhance/enhance.sh" "$teacher" "$prepared/$title.jsonl" "$enhanced/${title}_{kind}.jsonl" \
        "$task_types" --num_tokens "${NUM_TOKENS:-${teacher_values[1]}}" --temperature "$temperature" --seed "$seed" \
        --max_failures "${MAX_FAILURES:-0}" --restart --shard "$1/$shards" "${@:2}"
}

stage_merge() { # shards put together, and post-processed
    local kind
    if ((shards > 1)); then
        for kind in "${kinds[@]}"; do
            "$PYTHON" "$root/enhance/merge.py" --input "$prepared/$title.jsonl" \
                --output "$enhanced/${title}_$kind.jsonl" --shards "$shards" "$@"
        done
    fi
    exec "$PYTHON" "$root/enhance/data_prepare.py" --benchmark "$benchmark" --output_dir "$enhanced" \
        --test_dir "$prepared/test" --post_process ${FILTER:+--filter "$FILTER"} "$@"
}

stage_finetune() {
    exec bash "$root/finetune/finetune.sh" "$student" "$trained_on" "${BATCH:-${recommended[1]}}" \
        "${ACCUMULATION:-${recommended[2]}}" "${LEARNING_RATE:-${recommended[3]}}" "$epochs" "$task" "$run_name" \
        "$store" "${WANDB_PROJECT:-teacherlm}" --gradient_checkpointing "${recommended[4]}" --seed "$seed" \
        --report_to "${REPORT_TO:-none}" --restart "$@"
}

stage_evaluate() { # [MODEL: 0 is the untrained student, N its Nth checkpoint]; without one all of them, one by one
    local model=$student which=(--checkpoints "$store/$run_name")
    if [[ ${1:-} =~ ^[0-9]{1,9}$ ]]; then
        which=()
        (($1 == 0)) || model=$(checkpoint "$1")
        shift
        [[ -n $model ]] || { echo "evaluate: no such checkpoint: the finetuning made fewer"; exit 0; }
    fi
    exec "$PYTHON" "$root/evaluate/main.py" --model_args "pretrained=$model" --tasks "$benchmark" \
        --datasets "$prepared/test" --output_path "$evaluated" --tokenization "$tokenization" \
        "${which[@]}" "$@"
}

checkpoint() { # N: the folder of the Nth
    printf '%s\n' "$store/$run_name"/checkpoint-* | sort --version-sort | sed -n "$1p"
}

stage_report() { # the table here, and the page of the run's folder
    "$PYTHON" -P -m teacherlm table --task "$benchmark" --untrained "$evaluated/$student_name" \
        --checkpoints "$evaluated/$run_name" --log "$store/$run_name/log.jsonl"
    exec "$PYTHON" -P -m teacherlm report "$run_folder"
}

# The tasks that a stage can be shared out to: their numbers.
tasks_of() { # STAGE
    case $1 in
        enhance) seq 0 $((shards - 1)) ;;
        evaluate) seq 0 "$epochs" ;;
        *) echo 0 ;;
    esac
}

is_array() { # STAGE: whether its tasks are those of one job
    [[ $1 == enhance || $1 == evaluate ]]
}

# What two chains must not make at once: a name that is the same in both.
work_of() { # STAGE
    case $1 in
        prepare) echo prepare ;;
        enhance | merge) echo "enhance-${teacher_name}_seed$seed" ;;
        *) echo "$1-$run_name" ;;
    esac
}

# What a stage asks Slurm for: `request`, from the model's YAML and the site's own arguments, which come last and count.
resources() { # STAGE
    local model=$student words
    [[ $1 == enhance ]] && model=$teacher
    case $1 in enhance | finetune | evaluate) ;; *) model=none ;; esac
    [[ $1 == enhance && ($teacher == field:* || $teacher == http*://*) ]] && model=none
    if [[ $model == none ]]; then
        request=(--cpus-per-task=2 --mem=4G --time=04:00:00
            ${CPU_PARTITION:+--partition="$CPU_PARTITION"} "${SBATCH_ARGS[@]}" "${CPU_ARGS[@]}")
        return
    fi
    words=$("$PYTHON" -P -m teacherlm.catalog.models request "$model" "$1" ${GPU_TYPE:+--gpu_type="$GPU_TYPE"})
    mapfile -t request <<<"$words"
    request+=(${PARTITION:+--partition="$PARTITION"} "${SBATCH_ARGS[@]}")
    local -n own=${1^^}_ARGS
    request+=("${own[@]}")
}

# Said at submission, not hours later: compute nodes have no internet.
require_models() {
    local model
    for model in "$student" "$teacher"; do
        [[ $model == field:* || $model == http*://* ]] && continue
        HF_HUB_OFFLINE=1 "$PYTHON" -P -m teacherlm.catalog.models folder "$model" >/dev/null ||
            fail "$model is not on this machine's disks, and jobs have no internet: make download STUDENT=... TEACHER=..."
    done
}

# What must not be made by two at once: a file beside the results that holds the lock.
lock_of() { # STAGE TASK
    case $1 in
        enhance) echo "enhance-${teacher_name}_seed$seed-$2-of-$shards" ;;
        merge) echo "enhance-${teacher_name}_seed$seed" ;;
        evaluate) (($2)) && echo "evaluate-$run_name-$2" || echo "evaluate-$student_name" ;;
        finetune) echo "finetune-$run_name" ;;
        *) echo "$1" ;;
    esac
}

# Make the folders of this chain, which have to be this user's own: those of another are named in one line.
own_folders() { # FOLDER ...
    "$PYTHON" -P -m teacherlm chain-folder own "${RUNS:-runs}" "$@" || exit
}

# Run a stage, or one of its tasks, when nobody else is at it.
run_alone() { # STAGE TASK [WORD ...]
    local lock
    mkdir -p "$run_folder/.locks"
    lock=$run_folder/.locks/$(lock_of "$1" "$2")
    { exec 8>>"$lock"; } 2>/dev/null || fail "$lock: cannot be written; is the disk full, or is the file another user's?"
    flock --nonblock 8 || { echo "$1: waiting for another run that is at the same work"; flock 8; }
    "stage_$1" "${@:3}"
}

heading() {
    local name=$1
    [[ $1 == enhance ]] && name+=" (${kinds[*]})"
    [[ $1 == merge ]] && name+=" and post-process"
    printf '\n== %s\n' "$name"
}
