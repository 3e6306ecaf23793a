#!/usr/bin/env bash
# The chain: prepare, enhance, post-process, finetune, evaluate, table. Each stage skips what is done and unchanged.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: [VARIABLE=value ...] bash slurm/chain.sh BENCHMARK      (or: make BENCHMARK VARIABLE=value ...)

  STUDENT        the model that is finetuned: a name in models/, a folder, a hub id    MODEL, or smollm2-135m
  TEACHER        the model that explains; or explanations that are there, field:NAME    the student
  TASK           what is trained on: text, cot_tail, error_tail, fundamental_tail, full_tail, all    cot_tail
                 mixed, with how often an epoch has each sample: text:1,cot_tail:2; in this order: text,cot_tail
  LIMIT          the first so many training samples only                               all
  EPOCHS         of finetuning                                                         10
  SEED           of the teacher's draws and of finetuning                              0
  NUM_TOKENS     the teacher's, at most                                                the teacher's YAML
  TEMPERATURE    the teacher's; 0 takes the likeliest token                            1
  MAX_FAILURES   so many samples may stay without an explanation                       0
  BATCH, ACCUMULATION, LEARNING_RATE    of finetuning                                  the student's YAML
  RUNS           the folder under which everything goes                                runs
  BENCHMARK_DATA (CREAK_DATA, ...)      a folder with the benchmark's files            the hub
EOF
}

# The stages. Their variables are set in main.

prepare() {
    "$PYTHON" "$root/enhance/data_prepare.py" --benchmark "$benchmark" --output_dir "$prepared" \
        --test_dir "$prepared/test" ${data:+--data "$data"} ${LIMIT:+--limit "$LIMIT"}
}

enhance() { # all kinds in one pass, with one loaded teacher
    local task_types
    task_types=$(IFS=, && echo "${kinds[*]/%/_text}")
    bash "$root/enhance/enhance.sh" "$teacher" "$prepared/$title.jsonl" "$enhanced/${title}_{kind}.jsonl" "$task_types" \
        --num_tokens "${NUM_TOKENS:-${teacher_values[1]}}" --temperature "$temperature" --seed "$seed" \
        --max_failures "${MAX_FAILURES:-0}" --restart
}

post_process() {
    "$PYTHON" "$root/enhance/data_prepare.py" --benchmark "$benchmark" --output_dir "$enhanced" --post_process
}

finetune() { # DATASET
    bash "$root/finetune/finetune.sh" "$student" "$1" "${BATCH:-${recommended[1]}}" \
        "${ACCUMULATION:-${recommended[2]}}" "${LEARNING_RATE:-${recommended[3]}}" "$epochs" "$task" "$run_name" \
        "$store" "${WANDB_PROJECT:-teacherlm}" --gradient_checkpointing "${recommended[4]}" --seed "$seed" \
        --report_to "${REPORT_TO:-none}" --restart
}

evaluate() {
    "$PYTHON" "$root/evaluate/main.py" --model_args "pretrained=$student" --tasks "$benchmark" \
        --datasets "$prepared/test" --checkpoints "$store/$run_name" --output_path "$evaluated"
}

table() {
    "$PYTHON" "$root/report/table.py" --task "$benchmark" --untrained "$evaluated/$student_name" \
        --checkpoints "$evaluated/$run_name" --log "$store/$run_name/log.jsonl"
}

heading() {
    printf '\n== %s\n' "$1"
}

# The kinds of explanation that the task is made of: `kinds`. A task is a field, or several: text:1,cot_tail:2
find_kinds() {
    local part
    kinds=()
    for part in ${task//,/ }; do
        case ${part%%:*} in
            text) ;;
            cot_tail | cot | all) kinds+=(cot) ;;
            error_tail | error) kinds+=(error) ;;
            fundamental_tail | fundamental) kinds+=(fundamental) ;;
            full_tail) kinds+=(cot error fundamental) ;;
            *)
                echo "chain.sh: error: no task type '$part'; there are: text, cot_tail, error_tail, fundamental_tail, full_tail, all" >&2
                exit 2
                ;;
        esac
    done
    mapfile -t kinds < <(printf "%s\n" "${kinds[@]}" | sed "/^$/d" | sort -u)
}

# One function, so that bash has read all of this before a long stage begins: editing the file then harms nothing.
main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
    (($# == 1)) || { usage >&2; exit 2; }
    benchmark=$1

    root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    export PYTHON=${PYTHON:-$root/.venv/bin/python}
    [[ -x $PYTHON ]] || PYTHON=python3
    export PYTHONUNBUFFERED=1
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE} # threads that spin for one another stand still on a shared node

    student=${STUDENT:-${MODEL:-smollm2-135m}} task=${TASK:-cot_tail}
    teacher=${TEACHER:-$student} seed=${SEED:-0} epochs=${EPOCHS:-10} temperature=${TEMPERATURE:-1}
    data_variable=${benchmark//[^[:alnum:]]/_}
    data_variable=${data_variable^^}_DATA
    data=${!data_variable:-}

    find_kinds

    title=$("$PYTHON" -m teacherlm.benchmarks title "$benchmark")
    values=$("$PYTHON" -m teacherlm.models get "$student" \
        name finetune.batch finetune.accumulation finetune.learning_rate finetune.gradient_checkpointing)
    mapfile -t recommended <<<"$values"
    student_name=${recommended[0]}
    values=$("$PYTHON" -m teacherlm.models get "$teacher" name enhance.num_tokens)
    mapfile -t teacher_values <<<"$values"
    teacher_name=${teacher_values[0]}

    # Where things go. A name tells what a folder depends on, so that another student, task or seed is another folder.
    run_folder=${RUNS:-runs}/$benchmark/${LIMIT:+limit-}${LIMIT:-all}
    prepared=$run_folder/prepare
    enhanced=$run_folder/enhance/${teacher_name}_seed$seed
    store=$run_folder/finetune
    run_name=${student_name}_${task//[:,]/-}
    [[ $task == text ]] || run_name+=_$teacher_name
    run_name+=${BATCH:+_batch$BATCH}${ACCUMULATION:+_accumulation$ACCUMULATION}${LEARNING_RATE:+_lr$LEARNING_RATE}_seed$seed
    evaluated=$run_folder/evaluate

    echo "$benchmark: student $student_name, teacher $teacher_name, task $task, seed $seed; all goes to $run_folder"
    heading prepare
    prepare
    dataset=$prepared/$title
    if ((${#kinds[@]})); then
        heading "enhance (${kinds[*]})"
        enhance
        heading post-process
        post_process
        dataset=$enhanced/$title
    fi
    heading finetune
    finetune "$dataset"
    heading evaluate
    evaluate
    heading table
    table
}

main "$@"
exit
