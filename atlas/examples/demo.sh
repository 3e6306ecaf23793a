#!/usr/bin/env bash
# ATLAS on a small made-up world, with a real retriever (minilm): what is found, and what a reader that has not learned
# anything yet makes of it, with passages and without.
set -euo pipefail

usage="usage: [RUNS=FOLDER] bash demo.sh      (or: make atlas-demo)"

main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
    (($# == 0)) || { echo "$usage" >&2; exit 2; }
    local atlas python folder
    atlas=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    # shellcheck source=teacherlm/python.bash
    source "$atlas/../teacherlm/python.bash"
    python=$(choose_python "$(dirname -- "$atlas")")
    export RUNS=${RUNS:-runs} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
    folder=$RUNS/atlas-demo
    "$python" "$atlas/examples/made_up_facts.py" --output_directory "$folder/world"
    common=(--checkpoint_dir "$folder" --reader_model_type "$folder/world/reader" --retriever_model_path minilm
        --eval_data "$folder/world/test.jsonl" --text_maxlength 96 --target_maxlength 16 --generation_max_length 4
        --multiple_choice_eval_permutations cyclic --per_gpu_batch_size 16 --write_results)
    heading "with the 5 best of all passages"
    "$python" "$atlas/evaluate.py" "${common[@]}" --name retrieval --n_context 5 --passages "$folder/world/passages.jsonl"
    heading "closed book"
    "$python" "$atlas/evaluate.py" "${common[@]}" --name closed-book --closed_book
    heading "scores"
    for name in retrieval closed-book; do
        "$python" "$atlas/evaluation_scripts/evaluate_mmlu_predictions.py" --gold_path "$folder/world/test.jsonl" \
            --predictions_path "$folder/$name/test-step-0.jsonl"
    done
}

heading() {
    printf '\n== %s\n' "$1"
}

main "$@"
