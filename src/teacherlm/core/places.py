"""The places of files that are not code: in the checkout that this package is installed from, or in the package."""

import contextlib
import os
from pathlib import Path

from teacherlm.core.errors import UserError
from teacherlm.core.outputs import require_writable

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parents[1] if (PACKAGE.parents[1] / "benchmarks").is_dir() else PACKAGE / "data"
"""The checkout's folder. In an installed package, it is a folder with the same subfolders that a chain needs."""


def yaml_file(folder: Path, name: str) -> Path:
    """NAME.yaml in the `benchmarks/` or `models/` of the current folder if it exists, otherwise in the project's.

    Args:
        folder: the project's `benchmarks/` or `models/`.
        name: a name without slashes.
    """
    files = [place / f"{name}.yaml" for place in yaml_folders(folder)]
    return next((file for file in files if file.is_file()), files[-1])


def yaml_names(folder: Path) -> list[str]:
    """The names for which `yaml_file` finds a file."""
    return sorted({path.stem for place in yaml_folders(folder) for path in place.glob("*.yaml")})


def yaml_folders(folder: Path) -> list[Path]:
    here = Path.cwd() / folder.name
    return [folder] if here == ROOT / folder.name else [here, folder]


def runs_folder() -> Path:
    """The folder of all chains' runs: RUNS, or runs/ in the current folder."""
    return Path(os.environ.get("RUNS") or "runs")


def cache_folder() -> Path:
    """The folder for files that are costly to make again: TEACHERLM_CACHE, or the user's cache folder.

    Raises:
        UserError: neither is known, because HOME is not set and the system knows no home folder of this user.
    """
    if folder := os.environ.get("TEACHERLM_CACHE"):
        return Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "teacherlm"
    return in_home("~/.cache/teacherlm", "TEACHERLM_CACHE")


def in_home(path: str, variable: str) -> Path:
    """A path in which the user's home folder replaces a leading `~`.

    Args:
        variable: the environment variable that names this folder for a user without a home folder.

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
    """Check before a download that the hub's cache can be written. (A container's HOME often cannot.)

    Raises:
        UserError: it cannot be written.
    """
    folder = in_home(os.environ.get("HF_HOME") or "~/.cache/huggingface", "HF_HOME")
    try:
        require_writable(folder)
    except UserError as error:
        raise UserError(
            f"{folder}: the hub's cache cannot be written; set HF_HOME to a folder of yours (export HF_HOME=DIR)"
        ) from error
