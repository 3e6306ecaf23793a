"""The settings in the site's file (slurm/site.env, or SITE): accounts, partitions, more arguments of sbatch.

The file is bash. slurm/site.bash checks its owner, reads it, and prints its settings as words that end with NUL.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.places import ROOT

SLURM = ROOT / "slurm"
ARGUMENTS = ("SBATCH_ARGS", "CPU_ARGS", "ENHANCE_ARGS", "FINETUNE_ARGS", "EVALUATE_ARGS", "ATLAS_ARGS")
"""Arrays in the file: arguments of sbatch for all jobs, and for each kind of job."""
PARTITIONS = ("PARTITION", "CPU_PARTITION", "GPU_TYPE")
READ = 'source "$1/slurm/python.bash"; source "$1/slurm/site.bash"; hand_on_site "${@:2}"'


@dataclass(frozen=True)
class Site:
    """A site's settings.

    Attributes:
        arguments: name of an array in the file -> arguments of sbatch.
        names: PARTITION, CPU_PARTITION and GPU_TYPE, if they are set.
    """

    arguments: Mapping[str, list[str]] = field(default_factory=lambda: {name: [] for name in ARGUMENTS})
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def gpu_type(self) -> str:
        return self.names.get("GPU_TYPE", "")

    def partition(self, name: str) -> list[str]:
        return [f"--partition={self.names[name]}"] if self.names.get(name) else []


def site_file() -> str:
    """The site's file as the user knows it."""
    return os.environ.get("SITE") or "slurm/site.env"


def has_scripts() -> bool:
    """Whether the scripts for Slurm exist. Only a checkout has them."""
    return (SLURM / "site.bash").is_file()


def load_site(names: tuple[str, ...]) -> Site:
    """Read the site's file, and put the variables that it exports or that have these names into the environment.

    Raises:
        SystemExit: the file belongs to another user or has a mistake; a message on stderr says so.
    """
    if not has_scripts():
        raise UserError(f"{SLURM}: the scripts for Slurm are missing; use a checkout, or LAUNCHER=local")
    called = Path(sys.argv[0]).name
    command = ["bash", "-euo", "pipefail", "-c", READ, called, str(ROOT), *PARTITIONS, *names]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(2)
    words = iter(os.fsdecode(done.stdout).split("\0"))
    arguments = {name: take_array(words) for name in ARGUMENTS}
    found = dict(word.split("=", 1) for word in words if "=" in word)
    os.environ.update({name: value for name, value in found.items() if not name.startswith(("BASH_FUNC_", "_="))})
    return Site(arguments, {name: found[name] for name in PARTITIONS if found.get(name)})


def take_array(words: Iterator[str]) -> list[str]:
    """The next array. Its first word is the number of the words that follow."""
    return [next(words) for _ in range(int(next(words)))]
