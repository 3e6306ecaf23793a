"""The address of wandb's server, and a check that the key may be sent there.

wandb reads the file `wandb/settings` in the current folder. Anybody may have written it, and its `base_url` would get
the key. So wandb is started in a folder without settings.
"""

import configparser
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from teacherlm.catalog.servers import KEY_OVER_HTTP, is_here
from teacherlm.core.errors import UserError
from teacherlm.core.terminal import shown

ADDRESS = "WANDB_BASE_URL"
NO_SETTINGS = "/"
"""A folder in which only root can write settings."""


def server_address() -> str:
    """The address of the server: WANDB_BASE_URL, the address from `wandb login`, or wandb's public server.

    Raises:
        UserError: it is not an address, or the key would cross the network unencrypted.
    """
    address = os.environ.get(ADDRESS) or own_setting("base_url") or "https://api.wandb.ai"
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise UserError(f"{ADDRESS}: https://host was expected, found {shown(address)}")
    if parts.scheme == "http" and not is_here(host) and os.environ.get(KEY_OVER_HTTP) != "1":
        raise UserError(
            f"{ADDRESS}: the key would go to {host} unencrypted (http://), where others on the network can read it: "
            f"use https://, or set {KEY_OVER_HTTP}=1 if the network is yours"
        )
    return address


def own_setting(name: str) -> str | None:
    """A setting from the file that `wandb login` writes; None if it is missing."""
    settings = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, ValueError, RuntimeError):  # no file, or no home
        folder = os.environ.get("WANDB_CONFIG_DIR") or Path("~/.config/wandb").expanduser()
        settings.read(Path(folder) / "settings", encoding="utf-8")
        return settings.get("default", name, fallback=None)
    return None


@contextlib.contextmanager
def without_settings_here() -> Iterator[None]:
    """Within the block, the current folder has no settings. Use it for short work, before other threads start."""
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir(NO_SETTINGS)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)
