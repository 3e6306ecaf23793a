#!/usr/bin/env bash
# Score an OPT model on MMLU's 57 subjects. This is run_bloom_mmlu.sh under another name; it works for any model.
set -euo pipefail
# shellcheck source=evaluate/run_bloom_mmlu.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/run_bloom_mmlu.sh"
