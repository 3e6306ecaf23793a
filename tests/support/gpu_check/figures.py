"""The measurements: a process for each stage, so that each has the device for itself, and an error ends one only."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from support.programs import ROOT

STAGES = ("enhance", "finetune", "evaluate", "atlas-read", "atlas-embed", "atlas-search")
LONGEST = 90
"""Seconds of a stage, its loading included."""


def measure_all(stages: Sequence[str], device: str, size: str, seconds: float) -> list[dict[str, Any]]:
    """The figures of these stages within so many seconds; those that have none say why in `text`."""
    end = time.monotonic() + seconds
    found = []
    for stage in stages:
        print(f"--- measuring {stage}", flush=True)
        found.append(measure_one(stage, device, size, min(LONGEST, end - time.monotonic())))
    return found


def measure_one(stage: str, device: str, size: str, seconds: float) -> dict[str, Any]:
    if seconds < 1:
        return {"stage": stage, "outcome": "cut", "text": "no time was left for it"}
    command = [sys.executable, "-P", "-m", "support.gpu_check.stages", stage, device, size]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"stage": stage, "outcome": "cut", "text": f"it was ended after {seconds:.0f} s"}
    if done.returncode:
        return {"stage": stage, "outcome": "failed", "text": (done.stdout + done.stderr)[-6000:]}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "outcome": "measured", "text": ""}
