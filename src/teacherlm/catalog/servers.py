"""Servers of teachers: what their address may contain, and whether a key may be sent there."""

import ipaddress
import os
import re
import socket
import urllib.parse

from teacherlm.core.errors import UserError

KEY = "OPENAI_API_KEY"
KEY_OVER_HTTP = "TEACHERLM_KEY_OVER_HTTP"
"""If this variable is 1, the key may be sent to another machine without encryption."""


def is_address(name: str) -> bool:
    """Whether a teacher's name is the address of a server."""
    return name.lower().startswith(("http://", "https://"))


def split_address(address: str) -> tuple[str, str]:
    """Split http://host:port/model or http://host:port/v1/model into (http://host:port, model).

    Raises:
        UserError: it is not such an address; or it has more parts, which could be secrets, and addresses are written to
            manifests. The message does not repeat these parts.
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
            f"{where}: the server's address ({host}) contains a user's name, a password or a setting (?...); addresses "
            f"are written to files that others read: give {parts.scheme}://host:port/model, and a key, if one is "
            f"needed, as {KEY}"
        )
    model = urllib.parse.unquote(parts.path).strip("/").removeprefix("v1/")
    words = model.split("/")
    if not host or model == "v1" or not all(word.isprintable() and word not in ("", ".", "..") for word in words):
        raise UserError(f"{where}: {expected}; found {address!r}")
    netloc = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{netloc}{f':{port}' if port is not None else ''}", model


def key_for(address: str) -> str | None:
    """The key in OPENAI_API_KEY, which is sent to a server, or None if there is none.

    Args:
        address: http://host:port.

    Raises:
        UserError: the key would cross the network unencrypted, or has characters that HTTP cannot send.
    """
    key = os.environ.get(KEY)
    if not key:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"{KEY}: it has a space, a line break or a character that no key has; export it again")
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and not is_here(parts.hostname or "") and os.environ.get(KEY_OVER_HTTP) != "1":
        raise UserError(
            f"{KEY} would go to {parts.hostname} unencrypted (http://), where others on the network can read it: use "
            f"https://, unset {KEY} if that server needs no key, or set {KEY_OVER_HTTP}=1 if the network is yours"
        )
    return key


def is_here(host: str) -> bool:
    """Whether a host is this machine, so that data sent there crosses no network."""
    if host in ("localhost", socket.gethostname().lower()):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(address: str) -> None:
    """Refuse an address that is not a teacher's or that the key may not be sent to, before anything is written.

    Raises:
        UserError: see `split_address` and `key_for`.
    """
    key_for(split_address(address)[0])
