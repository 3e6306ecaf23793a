"""What the values of a JSON file must look like, and the first place where they do not.

A shape is one of
    a type, `str`, `int` or `bool`; `float` stands for any finite number, `str` for a text of LONGEST_TEXT at most;
    LONG_TEXT, for a text of any length;
    None;
    `[shape]` for a list;
    `{str: shape}` for an object with any names;
    `{"name": shape, "other?": shape}` for an object with these fields, of which `other` may be missing, and any others;
    a tuple of shapes, of which one has to fit.
"""

import math
from typing import Any

from teacherlm.core.terminal import shown

LONG_TEXT = "a text of any length"
LONGEST_TEXT = 10_000
"""Letters of a text in a shape: names, paths, dates. Longer ones come from no stage."""
WORDS = {
    str: "a text",
    LONG_TEXT: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
}


def flaw_of_shape(value: Any, shape: Any, place: str = "") -> str | None:
    """What is wrong with a value, as a sentence that begins with the place in it; None where it fits.

    Args:
        place: the value's own place, for the sentence: `tasks[3]`, for example.
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
