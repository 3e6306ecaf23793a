#!/usr/bin/env bash
# Test an image from within: its packages are those of its lock, and the chain runs with a small model.
set -euo pipefail

usage="usage: bash containers/test.sh      (within an image; apptainer test IMAGE runs it)"
[[ ${1:-} == -h || ${1:-} == --help ]] && { echo "$usage"; exit 0; }
(($# == 0)) || { echo "$usage" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd -- "$work"
/opt/venv/bin/python -P - <<'END'
import importlib
import importlib.metadata
from pathlib import Path

records = [line.split() for line in Path("/opt/image/packages.txt").read_text().splitlines()]
wrong = [(r[1], r[2]) for r in records if r[0] == "python" and importlib.metadata.version(r[1]) != r[2]]
assert not wrong, f"these packages differ from the lock: {wrong}"
for name in ("torch", "transformers", "datasets", "deepspeed", "lm_eval", "peft", "faiss"):
    importlib.import_module(name)
project = importlib.import_module("teacherlm")
assert "site-packages" in project.__file__, f"the project is not installed from its wheel: {project.__file__}"
print(f"{sum(r[0] == 'python' for r in records)} packages are as in the lock")
END
RUNS=$work/runs HF_HOME=$work/hub TEACHERLM_CACHE=$work/cache LIMIT=4 EPOCHS=1 NUM_TOKENS=4 BATCH=4 ACCUMULATION=1 \
    bash /opt/teacherlm/containers/run.sh chain sample
