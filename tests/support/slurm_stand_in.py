"""Programs in the place of Slurm's, for tests of what the chain does with their answers. tests/cluster/ has a Slurm."""

import os
from collections.abc import Sequence
from pathlib import Path


def slurm_path(folder: Path, **scripts: str) -> str:
    """A PATH that begins with a folder of programs. Each is a shell script: squeue="exit 1"."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def accepting(folder: Path) -> dict[str, str]:
    """An empty queue, and an sbatch that accepts every job. It keeps the arguments in the file `folder`/submitted."""
    count = f'echo "$@" >>{folder}/submitted; wc -l <{folder}/submitted'
    return {"squeue": "exit 0", "sinfo": "exit 1", "sbatch": count}


def queue(*lines: str, logs: Sequence[str] = ()) -> str:
    """A squeue that prints `lines` (job|index|state|reason), and `logs` (job and the path of its log)."""
    by_log, by_state = ("\n".join(found) for found in (logs, lines))
    return f"if [[ $* == *--Format=* ]]; then cat <<'END'\n{by_log}\nEND\nelse cat <<'END'\n{by_state}\nEND\nfi"
