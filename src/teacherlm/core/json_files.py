"""JSON files that are read at once: manifests, results, configurations. Records are read line by line (records.py)."""

import json
import re
from pathlib import Path
from typing import Any

from teacherlm.core.errors import UserError, reason
from teacherlm.core.limits import JSON_BYTES, JSON_DEPTH, JSON_PARTS, JSON_VALUES
from teacherlm.core.opening import open_ordinary
from teacherlm.core.shapes import flaw_of_shape


def load_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not an ordinary file, is not JSON in UTF-8, or exceeds a limit of limits.py.
    """
    with open_ordinary(path) as file:
        return parse_bounded(file.read(JSON_BYTES + 1))


def load_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError, ValueError: see `load_json`; or the value is not an object.
    """
    found = load_json(path)
    if not isinstance(found, dict):
        raise ValueError("a JSON object was expected")
    return found


def require_object(path: Path, shape: Any = None) -> dict[str, Any]:
    """The object in a JSON file that a command requires.

    Args:
        shape: the required shape, see shapes.py.

    Raises:
        UserError: the file cannot be read, or its value does not have the shape.
    """
    try:
        found = load_object(path)
        if flaw := flaw_of_shape(found, shape or {}):
            raise ValueError(flaw)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}); copy or make it again") from error
    return found


def parse_bounded(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: the text is not JSON in UTF-8, or it exceeds a limit of limits.py: too many bytes, too many values,
            or nested too deep.
    """
    if len(data) > JSON_BYTES:
        raise ValueError(f"it has more than {JSON_BYTES:,} bytes")
    if (count := data.count(b"[") + data.count(b"{")) > JSON_VALUES:
        raise ValueError(f"it has more than {JSON_VALUES:,} lists and objects")
    text = data.decode("utf-8")
    if has_more_parts(text, JSON_PARTS):
        raise ValueError(f"it has more than {JSON_PARTS:,} values")
    too_deep = ValueError(f"it is nested more than {JSON_DEPTH} levels deep")
    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep from None
    if count > JSON_DEPTH and is_deeper(value, JSON_DEPTH):
        raise too_deep
    return value


TEXT = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


def has_more_parts(text: str, most: int) -> bool:
    """Whether a JSON text has more than `most` parts. Parts are values, and the names in objects.

    Parts are counted by their commas. Commas within strings do not count, but strings are searched only if the number
    of all commas exceeds `most`.
    """
    if len(text) <= most or text.count(",") <= most:
        return False
    count = end = 0
    for found in TEXT.finditer(text):
        count += text.count(",", end, found.start())
        end = found.end()
        if count > most:
            return True
    return count + text.count(",", end) > most


def is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested more than `depth` levels deep, found without recursion."""
    level = [value]
    for _ in range(depth + 1):
        level = [one for one in level if isinstance(one, list | dict)]
        if not level:
            return False
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
    return True
