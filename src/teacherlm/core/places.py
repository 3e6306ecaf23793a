"""Where the files lie that are no code: in the checkout that this package is installed from, or packed into it."""

import contextlib
import os
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.outputs import require_writable

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parents[1] if (PACKAGE.parents[1] / "benchmarks").is_dir() else PACKAGE / "data"
"""The checkout's folder. Of an installed package it is one with the same folders that a chain needs."""


def yaml_file(folder: Path, name: str) -> Path:
    """NAME.yaml of the current folder's own `benchmarks/` or `models/`, if it is there; else that of the project.

    Args:
        folder: the project's.
        name: a single plain name.
    """
    files = [place / f"{name}.yaml" for place in yaml_folders(folder)]
    return next((file for file in files if file.is_file()), files[-1])


def yaml_names(folder: Path) -> list[str]:
    """The names for which `yaml_file` finds a file."""
    return sorted({path.stem for place in yaml_folders(folder) for path in place.glob("*.yaml")})


def yaml_folders(folder: Path) -> list[Path]:
    own = Path.cwd() / folder.name
    return [folder] if own == ROOT / folder.name else [own, folder]


def runs_folder() -> Path:
    """The folder that the runs of chains are under: RUNS, or runs/ in the current folder."""
    return Path(os.environ.get("RUNS") or "runs")


def cache_folder() -> Path:
    """Where this project keeps what is costly to make again: TEACHERLM_CACHE, or the user's cache folder.

    Raises:
        UserError: neither is known, as HOME is not set and the system knows no home folder of this user.
    """
    if folder := os.environ.get("TEACHERLM_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "teacherlm"
    return in_home("~/.cache/teacherlm", "TEACHERLM_CACHE")


def in_home(path: str, variable: str) -> Path:
    """A path that begins with `~`, with the user's home folder in its place.

    Args:
        variable: of the environment, which names this folder where there is no home.

    Raises:
        UserError: HOME is not set, and the system knows no home folder of this user.
    """
    home = os.environ.get("HOME")
    with contextlib.suppress(RuntimeError):
        if not path.startswith("~") or home is None or Path(home).is_absolute():
            return Path(path).expanduser()
    raise UserError(
        f"there is no home folder for {path} (HOME is {'empty' if home == '' else home or 'not set'}); set HOME, or "
        f"{variable} to a folder of yours"
    )


def require_hub_cache() -> None:
    """Find out before a download that the hub's cache can be written (a container's HOME often cannot).

    Raises:
        UserError: it cannot.
    """
    folder = in_home(os.environ.get("HF_HOME") or "~/.cache/huggingface", "HF_HOME")
    try:
        require_writable(folder)
    except UserError as error:
        raise UserError(
            f"{folder}: the hub's cache cannot be written; set HF_HOME to a folder of yours (export HF_HOME=DIR)"
        ) from error
