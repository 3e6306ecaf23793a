#!/usr/bin/env bash
# Score an OPT model on MMLU's 57 subjects: run_bloom_mmlu.sh by another name; all families load alike.
set -euo pipefail
# shellcheck source=evaluate/run_bloom_mmlu.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/run_bloom_mmlu.sh"
