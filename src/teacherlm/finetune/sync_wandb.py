"""Send the runs that wandb kept offline, from a machine with network access, such as a login node.

wandb marks runs that were sent, and they are skipped. If a run cannot be sent, it is kept and the exit status is 1.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from teacherlm.core.errors import UserError, reason
from teacherlm.core.flags import Parser
from teacherlm.core.lock import one_writer
from teacherlm.core.outputs import require_writable
from teacherlm.core.terminal import plural
from teacherlm.core.trees import files_below
from teacherlm.finetune.wandb_server import ADDRESS, NO_SETTINGS, server_address


def main() -> int:
    parser = Parser(description=__doc__, epilog="example: teacherlm sync-wandb store")
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path(os.environ.get("WANDB_DIR", ".")),
        help="the folder whose runs are sent: STORE_DIR (default: $WANDB_DIR, or the current folder)",
    )
    folder = parser.parse_args().folder
    if importlib.util.find_spec("wandb") is None:
        raise UserError("wandb is not installed here; install it with pip install -e .[tracking]")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the STORE_DIR of the finetuning")
    require_writable(folder)  # wandb marks what it has sent
    with one_writer(folder / "sync_wandb"):
        return send_all(folder)


def send_all(folder: Path) -> int:
    """Send the runs that were not sent before, and return the exit code."""
    runs = sorted({place for file in files_below(folder) for place in file.parents if is_run(place, folder)})
    waiting = [path for path in runs if not any(path.glob("*.synced"))]
    print(f"sync_wandb: {plural(len(runs), 'offline run')} below {folder}; {len(waiting)} to be sent")
    address = server_address()
    if waiting:
        require_server(address)
    failed = [path for path in waiting if not send(path, address)]
    for path in failed:
        print(f"sync_wandb: {path}: this run could not be sent and is kept", file=sys.stderr)
    return 1 if failed else 0


def is_run(place: Path, folder: Path) -> bool:
    """Whether a folder below another one holds a run that wandb kept offline."""
    return place.parent.name == "wandb" and place.name.startswith("offline-run-") and folder in place.parents


def require_server(address: str) -> None:
    """Check that the server can be reached, because wandb would try for hours.

    Raises:
        UserError: nothing answers at the server's address.
    """
    parts = urlsplit(address)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{address} cannot be reached from here ({reason(error)}); run this on a machine with network access, or "
            "set WANDB_BASE_URL; all runs are kept"
        ) from error


def send(path: Path, address: str) -> bool:
    print(f"sync_wandb: {path}", flush=True)
    path = path.absolute()
    # wandb writes logs to WANDB_DIR.
    environment = {**os.environ, "WANDB_DIR": str(path.parent.parent), ADDRESS: address}
    command = [sys.executable, "-P", "-m", "wandb", "sync", str(path)]
    return subprocess.run(command, env=environment, cwd=NO_SETTINGS, check=False).returncode == 0
