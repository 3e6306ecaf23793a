#!/usr/bin/env bash
# The chain: prepare, enhance, merge, finetune, evaluate, report; on this machine, or as Slurm jobs that wait for each
# other. What is done and unchanged is skipped.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: [VARIABLE=value ...] bash slurm/chain.sh BENCHMARK      (or: make BENCHMARK VARIABLE=value ...)
       DATA_DIR=FOLDER [...] bash slurm/chain.sh atlas-SETTING  (or: make atlas-SETTING ...; docs/atlas.md)

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
  FILTER         drops samples with these flags: empty, cut, repeats, copies, language, contradicts, duplicate, overlap
                 (docs/report.md says how they are found)                              none
  SHARDS         so many parts the teacher's work is cut into, a job each              1
  BATCH, ACCUMULATION, LEARNING_RATE    of finetuning                                  the student's YAML
  TOKENIZATION   of question and letter when they are scored: auto, apart or joint     auto: as the student was trained
  RUNS           the folder under which everything goes                                runs
  BENCHMARK_DATA (CREAK_DATA, ...)      a folder with the benchmark's files            the hub

  LAUNCHER       slurm or local                                                        slurm where there is sbatch
  CONTAINER      an image in which the stages run (docs/container.md)                  none: .venv
  DRY_RUN=1      on Slurm: print what would be submitted
EOF
}

# One function, so that bash has read all of this before a long stage begins: editing the file then harms nothing.
main() {
    [[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
    (($# == 1)) || { usage >&2; exit 2; }

    root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    # shellcheck source=slurm/lib/site.bash
    source "$root/slurm/lib/site.bash"
    load_chain "$1"
    local launcher=local
    command -v sbatch >/dev/null && launcher=slurm
    launcher=${LAUNCHER:-$launcher}
    [[ $launcher == local || $launcher == slurm ]] || fail "LAUNCHER=$launcher: slurm or local was expected"
    [[ $launcher == local ]] || load_site
    settings "$1"
    echo "${summary//[[:cntrl:]]/?}"
    if [[ $launcher == slurm ]]; then
        # shellcheck source=slurm/lib/submit.bash
        source "$root/slurm/lib/submit.bash"
        submit_chain
    else
        run_here
    fi
}

run_here() {
    local stage number
    own_folders "$run_folder/.locks"
    for stage in "${stages[@]}"; do
        heading "$stage"
        if [[ $stage == enhance || $stage == train ]] && is_array "$stage"; then
            for number in $(tasks_of "$stage"); do
                (run_alone "$stage" "$number" "$number")
            done
        else
            (run_alone "$stage" 0)
        fi
    done
}

main "$@"
exit
