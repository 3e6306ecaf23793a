"""Damage the files that stages read many times, and report the results: `make fuzz [ONLY=manifests COUNT=1000 SEED=7]`.

For each subject, the undamaged example is read first, then the cases that were once read wrongly (found/), then COUNT
damaged examples. The exit status is 1 if there was a fault. The damaged files of each fault are kept in a folder, in
the format of found/. They are moved to found/ when the fault is fixed.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from support.fuzz.harness import FOUND, Case, Fault, Summary, run_subject

from teacherlm.core import tables
from teacherlm.core.errors import UserError
from teacherlm.core.flags import Parser, require_number
from teacherlm.core.programs import run

SUBJECTS = ("records", "saved_folders", "benchmark_files", "model_files", "server_answers", "manifests", "results")
SUBJECTS += ("replicates", "predictions", "index_files", "archives")
MEMORY_DISK = Path("/dev/shm")


def main() -> int:
    parser = Parser(prog="fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"some of: {', '.join(SUBJECTS)} (with commas)")
    parser.add_argument("--count", type=int, default=10_000, help="damages of each subject (default: 10,000)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a processor)")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-faults"), help="folder for faults (default: fuzz-faults)"
    )
    args = parser.parse_args()
    require_number("count", args.count, least=0)
    require_number("workers", args.workers, least=1)
    names = [name for name in args.only.split(",") if name] or list(SUBJECTS)
    if unknown := [name for name in names if name not in SUBJECTS]:
        raise UserError(f"--only: {unknown[0]!r} is no subject; there are: {', '.join(SUBJECTS)}")
    summaries = []
    for name in names:
        summaries.append(apart(name, args))
        tell(summaries[-1], args.seed)
    print(table(summaries))
    return int(any(summary.faults for summary in summaries))


def apart(name: str, args: argparse.Namespace) -> Summary:
    """Run a subject in a separate process, so that its memory includes only its own imports."""
    own, theirs = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            os.close(own)
            summary = summary_of(name, args)
            said = vars(summary) | {"faults": list(map(vars, summary.faults))}
            with open(theirs, "w", encoding="utf-8") as pipe:
                json.dump(said, pipe)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(theirs)
    with open(own, "rb") as pipe:
        said = pipe.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit(3)  # an error in the subject or the harness, which the traceback shows
    found = json.loads(said)
    faults = [Fault(**fault) for fault in found.pop("faults")]
    return Summary(**{**found, "outcomes": Counter(found["outcomes"]), "faults": faults})


def summary_of(name: str, args: argparse.Namespace) -> Summary:
    place = MEMORY_DISK if os.access(MEMORY_DISK, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=place) as work:
        os.environ |= {
            "HF_HOME": f"{work}/hub",
            "HF_HUB_OFFLINE": "1",
            "MPLCONFIGDIR": f"{work}/hub",
            "OMP_NUM_THREADS": "1",
            "TEACHERLM_REVISION": "fuzz",
        }
        for module in ("huggingface_hub.constants", "datasets.config"):  # which read these when they are imported
            if module in sys.modules:
                importlib.reload(sys.modules[module])
        subject = importlib.import_module(f"support.fuzz.{name}").SUBJECT
        cases: list[Case] = [-1, *map(str, sorted(FOUND.glob(f"{name}-*.json"))), *range(args.count)]
        return run_subject(subject, cases, args.seed, Path(work), args.workers, args.keep.resolve())


def tell(summary: Summary, seed: int) -> None:
    for fault in summary.faults:
        print(f"--- {summary.name}, seed {seed}, {fault.case}: {fault.where}\n{fault.what.rstrip()}", flush=True)
    print(f"fuzz: {summary.name}: {sum(summary.outcomes.values())} read, {len(summary.faults)} faults", flush=True)


def table(summaries: list[Summary]) -> str:
    rows = [("subject", "examples", "read", "refused", "faulty", "different faults", "peak MiB", "seconds")]
    for one in summaries:
        counts = [sum(one.outcomes.values()), *(one.outcomes[name] for name in ("read", "refused", "fault"))]
        rows.append(
            (one.name, *map(str, counts), str(len(one.faults)), f"{one.peak / 2**20:.0f}", f"{one.seconds:.0f}")
        )
    return tables.table(rows)


if __name__ == "__main__":
    run(main)
