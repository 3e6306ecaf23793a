"""Servers of teachers: what their address may contain, and whether a key may be sent there."""

import ipaddress
import os
import re
import socket
import urllib.parse
from typing import NamedTuple

from teacherlm.core.errors import UserError
from teacherlm.core.redaction import hide_variable

KEY = "OPENAI_API_KEY"
KEY_OVER_HTTP = "TEACHERLM_KEY_OVER_HTTP"
"""If this variable is 1, the key may be sent to another machine without encryption."""


def is_address(name: str) -> bool:
    """Whether a teacher's name is the address of a server."""
    return name.lower().startswith(("http://", "https://"))


class Server(NamedTuple):
    """A teacher's server.

    Attributes:
        address: http://host:port.
        base: the address that `/completions` is added to: http://host:port/v1, https://host/api/v1.
        model: the model's name, as the server knows it.
    """

    address: str
    base: str
    model: str


def split_address(address: str, model: str | None = None) -> Server:
    """The server that an address names.

    Args:
        address: http://host:port/model, http://host:port/v1/model or https://host/path/v1/model. With `model`, the
            address before `/completions`, whose path is `v1` if it has none.
        model: the model's name, if the address does not contain it.

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
    path = parts.path.strip("/")
    if model is None:
        before, mark, after = f"/{path}".partition("/v1/")
        path, model = (before.strip("/"), urllib.parse.unquote(after if mark else path))
        path = f"{path}/v1" if mark else "v1"
    words = [*urllib.parse.unquote(path).strip("/").split("/"), *model.split("/")] if path else model.split("/")
    if not host or model == "v1" or not all(word.isprintable() and word not in ("", ".", "..") for word in words):
        raise UserError(f"{where}: {expected}; found {address!r}")
    netloc = f"[{host}]" if ":" in host else host
    origin = f"{parts.scheme}://{netloc}{f':{port}' if port is not None else ''}"
    return Server(origin, f"{origin}/{path.strip('/') or 'v1'}", model)


def key_for(address: str, variable: str = KEY) -> str | None:
    """The key that is sent to a server, or None if there is none.

    Args:
        address: http://host:port.
        variable: the environment variable with the key. If it is another than OPENAI_API_KEY, it has to be set.

    Raises:
        UserError: the key would cross the network unencrypted, or has characters that HTTP cannot send.
    """
    hide_variable(variable)
    key = os.environ.get(variable)
    if not key and variable != KEY:  # the message does not repeat the word, which may be the key itself
        raise UserError("--key_variable: no environment variable of that name is set; give its name, and not the key")
    if not key:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise UserError(f"{variable}: it has a space, a line break or a character that no key has; export it again")
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and not is_here(parts.hostname or "") and os.environ.get(KEY_OVER_HTTP) != "1":
        raise UserError(
            f"{variable} would go to {parts.hostname} unencrypted (http://), where others on the network can read it: "
            f"use https://, unset {variable} if that server needs no key, or set {KEY_OVER_HTTP}=1 if the network is "
            "yours"
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


def check_address(address: str, model: str | None = None, key_variable: str = KEY) -> Server:
    """The server of an address that is a teacher's and that the key may be sent to, before anything is written.

    Raises:
        UserError: see `split_address` and `key_for`.
    """
    server = split_address(address, model)
    key_for(server.address, key_variable)
    return server
