"""MMLU for ATLAS, prepared and scored."""

import subprocess
from pathlib import Path

from support.atlas_models import run_script
from support.programs import ROOT

SCRIPT = ROOT / "atlas" / "preprocessing" / "prepare_mmlu.py"


def prepare(output: Path, *words: object) -> subprocess.CompletedProcess:
    return run_script(SCRIPT, [*map(str, ("--output_directory", output, *words))], {})
