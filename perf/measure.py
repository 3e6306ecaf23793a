"""Measure contenders side by side: alternately, each in a separate process, with median and spread of the repetitions.

The process of a contender prints one line of JSON: {"value": ..., "seconds": ..., ...}. Its peak memory is read from
the system after it has ended.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Contender:
    """One way to do the job.

    Attributes:
        name: a short name for the command line.
        what: a description for the table.
        dtype: the data type of its arithmetic.
        peer: whether users might choose it instead of this project; the best peer is the one to compare with.
        once: whether it is so slow that it is measured only once.
    """

    name: str
    what: str
    dtype: str
    peer: bool = False
    once: bool = False


def choose(contenders: Sequence[Contender], names: str | None) -> list[Contender]:
    """The contenders with the given names, separated by commas, in this order; None means all."""
    if names is None:
        return list(contenders)
    return [contender for name in names.split(",") for contender in contenders if contender.name == name]


def run_alternately(
    module: str,
    contenders: Sequence[Contender],
    words: Sequence[str],
    repetitions: int,
    pythons: Mapping[str, str] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Run `python -m module --contender NAME words...` for each contender in turn, `repetitions` times.

    Args:
        pythons: maps names of contenders that are installed elsewhere to their Python interpreters.
    """
    measured: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
    for repetition in range(repetitions):
        for contender in contenders:
            if contender.once and repetition:
                continue
            python = (pythons or {}).get(contender.name, sys.executable)
            command = [python, "-P", "-m", module, "--contender", contender.name, *words]
            result, peak = run_once(command)
            measured[contender.name].append({**result, "peak_memory_bytes": peak})
            shown = ", ".join(f"{key} {value:.4g}" for key, value in result.items() if isinstance(value, float))
            print(f"{repetition + 1}/{repetitions} {contender.name}: {shown}, peak {peak / 2**30:.2f} GiB", flush=True)
    return measured


def run_once(command: list[str]) -> tuple[dict[str, Any], int]:
    """The JSON in the last line that a process printed, and its peak memory in bytes."""
    # The path has perf/, and the project for interpreters in which it is not installed.
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(output.strip().splitlines()[-1]), usage.ru_maxrss * 1024


def summarize(
    contenders: Sequence[Contender], measured: dict[str, list[dict[str, Any]]], unit: str, reference: str
) -> list[dict[str, Any]]:
    """One object per contender: median, values, peak memory, and the ratios to the reference and to the best peer."""
    values = {name: statistics.median(run["value"] for run in runs) for name, runs in measured.items()}
    peers = [values[contender.name] for contender in contenders if contender.peer]
    rows = []
    for contender in contenders:
        runs = measured[contender.name]
        rows.append(
            {
                **asdict(contender),
                "value": values[contender.name],
                "unit": unit,
                "values": [run["value"] for run in runs],
                "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
                "ratio_to_reference": values[contender.name] / values[reference],
                "ratio_to_best_peer": values[contender.name] / max(peers) if peers else None,
                "runs": runs,
            }
        )
    return rows


def write_results(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows to a file. Rows of scenarios that were not measured this time are kept."""
    path.parent.mkdir(exist_ok=True)
    measured = {row.get("scenario") for row in rows}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    rows = [row for row in kept if row.get("scenario") not in measured] + rows
    path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    added = "added_memory_bytes" in rows[0]["runs"][0]
    lines = [
        f"| | dtype | {rows[0]['unit']} | spread | to the reference | to the best peer | peak memory |"
        + (" added memory |" if added else ""),
        "|---|---|---|---|---|---|---|" + "---|" * added,
    ]
    for row in rows:
        peer = "-" if row["ratio_to_best_peer"] is None else f"{row['ratio_to_best_peer']:.2f}"
        cells = (
            row["what"],
            row["dtype"],
            f"{row['value']:.2f}",
            f"{min(row['values']):.2f} - {max(row['values']):.2f}",
            f"{row['ratio_to_reference']:.1f}",
            peer,
            f"{row['peak_memory_bytes'] / 2**30:.2f} GiB",
        )
        if added:
            cells += (f"{max(run['added_memory_bytes'] for run in row['runs']) / 2**30:.2f} GiB",)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reset_peak_memory() -> int:
    """Reset the peak memory of this process, and return the number of bytes that it uses now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
