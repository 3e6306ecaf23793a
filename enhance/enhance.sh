#!/usr/bin/env bash
# Let a teacher complete one prompt field of every record.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: bash enhance.sh TEACHER INPUT.jsonl OUTPUT.jsonl {cot_text|error_text|fundamental_text} [FLAG ...]

  TEACHER   a name in models/, a folder with a model, a hub id, a server's model (http://host:port/model), or field:FIELD,
            which takes texts that the records have
  FLAG ...  flags for enhance.py: --batch_size, --num_tokens, --temperature, --seed, ... (enhance.py --help lists them)

After an interruption the same command continues the work.
example: bash enhance.sh /weights/TeacherLM-7.1B-COT ./CREAK.jsonl ./CREAK_cot.jsonl cot_text
EOF
}

[[ ${1:-} == -h || ${1:-} == --help ]] && { usage; exit 0; }
(($# >= 4)) || { usage >&2; exit 2; }
teacher=$1 input=$2 output=$3 task_type=$4

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/python.bash
source "$here/../slurm/python.bash"
python=$(choose_python)

exec "$python" "$here/enhance.py" --name "$teacher" --input "$input" --output "$output" --task_type "$task_type" "${@:5}"
