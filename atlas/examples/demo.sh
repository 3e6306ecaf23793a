#!/usr/bin/env bash
# Show that retrieval matters: a small reader with random weights learns about made-up places, with a real retriever
# (minilm). The places of the test do not occur in training.
set -euo pipefail

usage="usage: [RUNS=FOLDER] [PLACES=400] [READER_STEPS=450] [RETRIEVER_STEPS=60] bash demo.sh      (or: make atlas-demo)"

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
    (($# == 0)) || { echo "$usage" >&2; exit 2; }
    local atlas python folder world steps=${READER_STEPS:-450} retriever_steps=${RETRIEVER_STEPS:-60}
    atlas=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    # shellcheck source=slurm/python.bash
    source "$atlas/../slurm/python.bash"
    python=$(choose_python)
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
    folder=${RUNS:-runs}/atlas-demo
    world=$folder/world
    "$python" -P -m teacherlm made-up-facts --output_directory "$world" --places "${PLACES:-400}"
    local -a common=(--checkpoint_dir "$folder" --text_maxlength 96 --target_maxlength 16 --generation_max_length 4
        --n_context 1 --multiple_choice_eval_permutations cyclic --write_results)
    local -a learning=(--train_data "$world/train.jsonl" --eval_data "$world/test.jsonl" --shuffle --dropout 0
        --multiple_choice_train_permutations all --weight_decay 0.01)
    local -a reading=(--reader_model_type "$world/reader" --per_gpu_batch_size 64 --lr 1e-3 --scheduler linear
        --warmup_steps 50 --total_steps "$steps" --eval_freq "$steps")
    local -a retrieving=(--reader_model_type "$folder/given/checkpoint/step-$steps/reader"
        --retriever_model_path minilm --passages "$world/passages.jsonl")

    heading "closed book: $steps steps without a passage"
    "$python" "$atlas/train.py" "${common[@]}" "${learning[@]}" "${reading[@]}" --name closed-book --closed_book
    heading "reading: $steps steps, each question with its passage"
    "$python" "$atlas/train.py" "${common[@]}" "${learning[@]}" "${reading[@]}" --name given --use_file_passages
    heading "the best of all passages, as minilm finds it"
    "$python" "$atlas/evaluate.py" "${common[@]}" "${retrieving[@]}" --name retrieved \
        --eval_data "$world/test.jsonl" --per_gpu_batch_size 64
    heading "the retriever learns from the reader: $retriever_steps steps"
    "$python" "$atlas/train.py" "${common[@]}" "${learning[@]}" "${retrieving[@]}" --name retriever-learns \
        --train_retriever --query_side_retriever_training --retriever_n_context 4 --per_gpu_batch_size 16 \
        --lr 1e-4 --lr_retriever 5e-5 --scheduler fixed --warmup_steps 5 \
        --total_steps "$retriever_steps" --eval_freq "$retriever_steps" --log_freq 20
    heading "unseen places"
    "$python" -P -m teacherlm made-up-scores "$folder"
}

heading() {
    printf '\n== %s\n' "$1"
}

main "$@"
