"""The required shape of a JSON file's values, and the first place where they do not have it.

A shape is one of
    a type: `str` for a text of at most LONGEST_TEXT characters, `int`, `bool`, or `float` for any finite number;
    LONG_TEXT for a text of any length;
    None for null;
    `[shape]` for a list;
    `{str: shape}` for an object with any names;
    `{"name": shape, "other?": shape}` for an object with these fields; `other` may be missing, and more are allowed;
    a tuple of shapes, of which one must fit.
"""

import math
from typing import Any

from teacherlm.core.terminal import shown

LONG_TEXT = "a text of any length"
LONGEST_TEXT = 10_000
"""Maximum number of characters of a `str`: names, paths, dates. No stage writes longer ones."""
WORDS = {
    str: "a text",
    LONG_TEXT: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
}


def flaw_of_shape(value: Any, shape: Any, place: str = "") -> str | None:
    """What is wrong with a value, as a sentence that begins with the place in the value; None if the value fits.

    Args:
        place: the place of the value itself, such as `tasks[3]`.
    """
    if isinstance(shape, tuple):
        flaws = [flaw_of_shape(value, one, place) for one in shape]
        return None if None in flaws else flaws[0]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return expected("a list", value, place)
        return first(flaw_of_shape(part, shape[0], f"{place}[{number}]") for number, part in enumerate(value))
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return expected("an object", value, place)
        if str in shape:
            return first(flaw_of_shape(part, shape[str], at(place, name)) for name, part in value.items())
        return first(flaw_of_field(value, name, part, place) for name, part in shape.items())
    return None if fits(value, shape) else expected(WORDS.get(shape, "null"), value, place)


def flaw_of_field(value: dict[str, Any], name: str, shape: Any, place: str) -> str | None:
    bare = name.removesuffix("?")
    if bare in value:
        return flaw_of_shape(value[bare], shape, at(place, bare))
    return None if name.endswith("?") else f"{at(place, bare)} is missing"


def fits(value: Any, shape: type | str | None) -> bool:
    if isinstance(value, str):
        return shape == LONG_TEXT or (shape is str and len(value) <= LONGEST_TEXT)
    if isinstance(value, bool) or value is None:
        return shape is bool if value is not None else shape is None
    if isinstance(value, int):
        return shape in (int, float) and -(2**63) <= value < 2**63
    if isinstance(value, float):
        return shape is float and math.isfinite(value)
    return shape is dict and isinstance(value, dict)


def at(place: str, name: str) -> str:
    return f"{place}.{shown(name)[1:-1]}" if place else shown(name)[1:-1]


def expected(words: str, value: Any, place: str) -> str:
    found = "null" if value is None else shown(value)
    return f"{place or 'it'}: {words} was expected, found {found}"


def first(flaws: Any) -> str | None:
    return next(filter(None, flaws), None)
