"""Servers that a teacher answers from: what their address may hold, and whether a key may be sent there."""

import ipaddress
import os
import re
import socket
import urllib.parse

from teacherlm.core.errors import UserError

KEY = "OPENAI_API_KEY"
KEY_OVER_HTTP = "TEACHERLM_KEY_OVER_HTTP"
"""Set to 1, the key goes to another machine without encryption."""


def is_address(name: str) -> bool:
    """Whether a teacher's name is the address of a server."""
    return name.lower().startswith(("http://", "https://"))


def split_address(address: str) -> tuple[str, str]:
    """(http://host:port, model) of http://host:port/model or http://host:port/v1/model.

    Raises:
        UserError: it is no such address, or has more in it, which could be a secret: an address is written to
            manifests. The message does not repeat it.
    """
    where = "TEACHER, --name"
    expected = "http://host:port/model was expected, with the model's name as the server knows it"
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{where}: {expected}; its host or port is not valid") from error
    if "@" in parts.netloc or "?" in address or "#" in address:
        raise UserError(
            f"{where}: the server's address ({host}) has a user's name, a password or a setting (?...) in it; an "
            f"address is written to files that others read: give {parts.scheme}://host:port/model, and the key, where "
            f"one is needed, as {KEY}"
        )
    model = urllib.parse.unquote(parts.path).strip("/").removeprefix("v1/")
    words = model.split("/")
    if not host or model == "v1" or not all(word.isprintable() and word not in ("", ".", "..") for word in words):
        raise UserError(f"{where}: {expected}; found {address!r}")
    netloc = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{netloc}{f':{port}' if port is not None else ''}", model


def key_for(address: str) -> str | None:
    """The key that is sent to a server, from OPENAI_API_KEY; None without one.

    Args:
        address: http://host:port.

    Raises:
        UserError: it would cross the network unencrypted, or is none that HTTP can carry.
    """
    key = os.environ.get(KEY)
    if not key:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"{KEY}: it has a blank, a line break or a letter that no key has; export it again")
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and not is_here(parts.hostname or "") and os.environ.get(KEY_OVER_HTTP) != "1":
        raise UserError(
            f"{KEY} would go to {parts.hostname} unencrypted (http://), where others on the network can read it: use "
            f"https://, unset {KEY} if that server needs no key, or set {KEY_OVER_HTTP}=1 if the network is yours"
        )
    return key


def is_here(host: str) -> bool:
    """Whether a host is this machine, so that what is sent there crosses no network."""
    if host in ("localhost", socket.gethostname().lower()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(address: str) -> None:
    """Refuse an address that cannot be a teacher's, or that the key may not be sent to, before anything is written.

    Raises:
        UserError: see `split_address` and `key_for`.
    """
    key_for(split_address(address)[0])
