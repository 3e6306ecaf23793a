"""The command that starts a server with a teacher: the field `serve` of models/NAME.yaml."""

import os
import re
import shlex
from collections.abc import Mapping
from typing import Annotated

from teacherlm.core.errors import UserError
from teacherlm.core.yaml_fields import fits

PLACES = ("folder", "file", "name", "port", "gpus")
"""What may stand in braces: the folder of the weights, the GGUF file of a package, the model's name, the port on
127.0.0.1 at which the server has to answer, and the number of GPUs."""
PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")


def is_command(serve: str) -> bool:
    """Whether a text is a command that names the port and has only known names in braces.

    No shell reads it, so a word with a space needs quotes, and `|` and `&&` mean nothing.
    """
    try:
        found = [name for word in shlex.split(serve) for name in PLACE.findall(word)]
    except ValueError:
        return False
    return "port" in found and all(name in PLACES for name in found)


Serve = Annotated[
    str,
    fits(
        "a command with {port}, and otherwise only " + ", ".join(f"{{{name}}}" for name in PLACES if name != "port"),
        is_command,
    ),
]


def serve_words(model: str, serve: str, places: Mapping[str, str]) -> list[str]:
    """The words of a model's command, with `places` for the names in braces and with the environment's variables.

    Raises:
        UserError: a name in braces stands for nothing here, or an environment variable is not set.
    """

    def place(found: re.Match[str]) -> str:
        if found[1] not in places:
            raise UserError(f"model {model}: serve: there is no {found[0]}: its weights are not a file of a package")
        return places[found[1]]

    words = [os.path.expandvars(word) for word in shlex.split(serve)]
    if unset := next((found for word in words if (found := re.search(r"\$\{?(\w+)", word))), None):
        raise UserError(f"model {model}: serve: set {unset[1]} in the environment, or write its value")
    return [PLACE.sub(place, word) for word in words]
