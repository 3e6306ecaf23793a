"""Check this project on this machine's GPU: `make check-gpu [OUTPUT=gpu-check.json]`. It installs nothing.

First the tests that are marked `gpu`, which compare what the GPU computes with plain forward passes in float32 on the
CPU; then a short measurement of each stage. It ends with a table, and a file to attach to a bug report. The exit status
is 1 if a test failed, and 2 if this machine lacks something. docs/how-to/use-gpus.md says more.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.gpu_check.needs import require_all
from teacherlm.core.errors import UserError
from teacherlm.core.programs import run

FOR_TESTS, FOR_FIGURES = 570, 240
"""Seconds; with the start they stay below 15 minutes."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make check-gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("gpu-check.json"), help="the file that is written (default: gpu-check.json)"
    )
    args = parser.parse_args()
    require_all()
    if not args.output.absolute().parent.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {args.output.parent}")
    return check(args.output)


def check(output: Path) -> int:
    """Run the tests and the measurements, print the tables and write the file; returns the exit status."""
    from support.gpu_check.figures import STAGES, measure_all
    from support.gpu_check.report import counts, write_report
    from support.gpu_check.run_tests import FOLDER, run_tests

    started = time.monotonic()
    outcomes = run_tests(sorted(FOLDER.glob("test_*.py")), FOR_TESTS)
    figures = measure_all(STAGES, "cuda", "whole", FOR_FIGURES)
    write_report(output, outcomes, figures, time.monotonic() - started)
    found = counts(outcomes)
    print("", test_table(outcomes), "", figure_table(figures), "", sep="\n")
    print(", ".join(f"{number} {kind}" for kind, number in found.items()), f"in {time.monotonic() - started:.0f} s")
    print(f"attach this file to a bug report: {output}")
    failed = found["failed"] or any(one["outcome"] == "failed" for one in figures)
    return int(bool(failed))


def test_table(outcomes: Sequence[Any]) -> str:
    from teacherlm.core.tables import table

    rows = [("test", "outcome", "s", "why")]
    for one in outcomes:
        why = one.text.strip().splitlines()[-1][:100] if one.text.strip() else ""
        rows.append((one.name.removeprefix("tests/gpu/"), one.outcome, f"{one.seconds:.1f}", why))
    return table(rows)


def figure_table(figures: Sequence[dict[str, Any]]) -> str:
    from teacherlm.core.tables import table

    rows = [("stage", "what", "dtype", "tokens/s", "memory GiB", "TFLOP/s", "of a matrix product's")]
    for one in figures:
        if one["outcome"] == "measured":
            numbers = (f"{one['tokens_per_second']:.0f}", f"{one['memory_gib']:.2f}", f"{one['tflops']:.2f}")
            rows.append((one["stage"], one["what"], one["dtype"], *numbers, f"{100 * one['mfu']:.1f} %"))
        else:
            why = one["text"].strip().splitlines()[-1][:100] if one["text"].strip() else ""
            rows.append((one["stage"], why, one["outcome"], "", "", "", ""))
    return table(rows)


if __name__ == "__main__":
    sys.argv[0] = "check-gpu"  # as messages begin
    run(main)
