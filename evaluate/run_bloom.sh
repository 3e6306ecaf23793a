#!/usr/bin/env bash
# Score a BLOOM or BLOOMZ model: run_hf.sh by the name that the reference gave it; all families load alike.
set -euo pipefail
# shellcheck source=evaluate/run_hf.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/run_hf.sh"
