#!/usr/bin/env bash
# Score a BLOOM or BLOOMZ model. This is run_hf.sh under the name that the reference uses; it works for any model.
set -euo pipefail
# shellcheck source=evaluate/run_hf.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/run_hf.sh"
