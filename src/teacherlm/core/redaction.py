"""Removal of secrets from all text that is written or printed: manifests, lists of failures, messages.

A secret is recognized by its name: the name of an environment variable, of a flag, or of a setting within a flag, such
as `api_key` in `http://host/model?api_key=...`. Its value is then hidden wherever it appears.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

HIDDEN = "[hidden]"
SHORTEST = 8
"""Minimum number of characters of a value that is hidden everywhere. A shorter value is hidden only after its name."""
NAMES = {"token", "key", "apikey", "password", "passwd", "passphrase", "secret", "credential", "credentials"}
NEAR = r"(?:token|key|passw|passphrase|secret|credential)"
PAIR = re.compile(
    r"([\w.-]{0,32}" + NEAR + r"[\w.-]{0,32})([\"']?\s{0,9}[=:]\s{0,9}[\"']?)([^\s\"',&;}\]]+)", re.IGNORECASE
)
"""A setting whose name may be a secret's, with its value: NAME=VALUE, or "NAME": "VALUE" in JSON."""
HIDDEN_VARIABLES: set[str] = set()
"""Environment variables that hold a secret although their names may not say so; see `hide_variable`."""
LOGIN = re.compile(r"(?<=://)([^/@\s]+)@")
"""The name and the password before the host of an address."""


def hide_variable(name: str) -> None:
    """Hide the value of this environment variable from now on, whatever its name."""
    HIDDEN_VARIABLES.add(name)


def is_secret(name: str) -> bool:
    """Whether a flag, a setting or a variable of that name holds a secret: `hub_token` does, `num_tokens` does not.

    `key_variable` holds the name of a variable.
    """
    if name.lower().endswith("key_variable"):
        return False
    words = re.split(r"[^A-Za-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name))
    return not NAMES.isdisjoint(word.lower() for word in words)


def redacted(text: str) -> str:
    """A text without the values of the secrets in this process's environment and command."""
    return without_values(text, known_secrets())


def without_values(text: str, secrets: Iterable[str]) -> str:
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def redacted_command(words: Sequence[str]) -> list[str]:
    """The words of a command without secrets, which are recognized by their names and by their values."""
    shown, secret_follows, secrets = [], False, known_secrets()
    for word in words:
        if secret_follows and not word.startswith("--"):
            shown.append(HIDDEN)
        else:
            shown.append(without_values(without_named(word), secrets))
        secret_follows = word.startswith("-") and "=" not in word and is_secret(word)
    return shown


def hide_named(pair: re.Match[str]) -> str:
    if not is_secret(pair[1]) or HIDDEN.startswith(pair[3]):  # hidden already
        return pair[0]
    return f"{pair[1]}{pair[2]}{HIDDEN}"


def without_named(value: Any) -> Any:
    """A JSON value without the secrets that are recognized by their names. Arguments are recorded in this form.

    The result depends only on the value, so the same arguments give the same record in every environment.
    """
    if isinstance(value, str):
        return LOGIN.sub(f"{HIDDEN}@", PAIR.sub(hide_named, value))
    if isinstance(value, Mapping):
        return {name: HIDDEN if is_text_secret(name, one) else without_named(one) for name, one in value.items()}
    return [without_named(one) for one in value] if isinstance(value, (list, tuple)) else value


def secret_settings(value: Any, where: str = "") -> Iterator[str]:
    """The names of the secrets in a JSON value, such as `comet.api_key`."""
    for name, one in value.items() if isinstance(value, Mapping) else ():
        if is_text_secret(name, one):
            yield f"{where}{name}"
        yield from secret_settings(one, f"{where}{name}.")


def is_text_secret(name: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and is_secret(str(name))


def known_secrets() -> set[str]:
    """The values of this process's secrets that are long enough to be hidden everywhere."""
    found = {value for name, value in os.environ.items() if is_secret(name) or name in HIDDEN_VARIABLES}
    found |= set(secrets_in(sys.argv[1:]))
    for text in (*os.environ.values(), *sys.argv[1:]):  # for example HTTPS_PROXY=http://name:password@host
        found |= {login.partition(":")[2] or login for login in LOGIN.findall(text)}
    return {value for value in found if len(value) >= SHORTEST}


def secrets_in(words: Iterable[str]) -> Iterator[str]:
    """The values in a command that follow a secret's name."""
    secret_follows = False
    for word in words:
        if secret_follows and not word.startswith("--"):
            yield word
        yield from (pair[3] for pair in PAIR.finditer(word) if is_secret(pair[1]))
        secret_follows = word.startswith("-") and "=" not in word and is_secret(word)
