"""YAML files read into dataclasses with pydantic. A mistake is reported in one line.

The file's scalars are texts (yaml_files.py). A field that is a number or a boolean converts its text, so that `yes`,
`1e-5` and `24:00:00` need no quotes. Only values from a file are checked, not dataclasses that the code makes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Strict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from teacherlm.core.errors import UserError
from teacherlm.core.terminal import cut, shown
from teacherlm.core.yaml_files import load_yaml

BOOLEANS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


def reading(read: Callable[[str], Any]) -> BeforeValidator:
    """Convert a text. A text that cannot be converted stays as it is, and the field's type then refuses it."""

    def parse(value: Any) -> Any:
        try:
            return read(value) if isinstance(value, str) else value
        except (ValueError, KeyError):
            return value

    return BeforeValidator(parse)


def fits(words: str, is_right: Callable[[Any], object]) -> AfterValidator:
    """Refuse a value of the right type for which `is_right` is false. `words` says what was expected."""

    def check(value: Any) -> Any:
        if not is_right(value):
            raise ValueError(f"{words} was expected, found {shown(value) if isinstance(value, str) else value}")
        return value

    return AfterValidator(check)


def named(kind: type, given: Mapping[str, Any] | None = None) -> BeforeValidator:
    """The fields of a dataclass from a mapping. Nulls are left out, so that these fields have their defaults.

    Args:
        given: values of fields that the caller sets and that the file must not have.
    """
    known = [field.name for field in dataclasses.fields(kind) if field.name not in (given or {})]

    def fields(content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        if unknown := [name for name in content if name not in known]:
            raise ValueError(f"unknown field {shown(unknown[0])}; known: {', '.join(known)}")
        return {name: value for name, value in content.items() if value is not None} | dict(given or {})

    return BeforeValidator(fields)


Whole = Annotated[int, Strict(), reading(int)]
Number = Annotated[float, Strict(), reading(float)]
Switch = Annotated[bool, Strict(), reading(lambda text: BOOLEANS[text.lower()])]
Kind = TypeVar("Kind")


def read_yaml(path: Path, kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """The dataclass that a YAML file describes.

    Args:
        given: see `named`.

    Raises:
        UserError: the message names the file, and the line or the field. A missing field is reported first, otherwise
            the first mistake in the file.
    """
    content = load_yaml(path)
    described: Any = Annotated[kind, named(kind, given)]
    try:
        read: Kind = TypeAdapter(described).validate_python(content)
    except ValidationError as error:
        order: list[Any] = [(), *((name,) for name in content)]
        first = min(error.errors(), key=lambda one: -1 if one["type"] == "missing" else order.index(one["loc"][:1]))
        raise UserError(f"{path}: {mistake(first)}") from None
    return read


WORDS = {"string_type": "a text", "float_type": "a number", "int_type": "a whole number", "bool_type": "true or false"}
WORDS |= {"list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping", "dataclass_type": "a mapping"}
WORDS |= {"is_instance_of": "a text"}
"""pydantic's type of error -> what was expected."""


def mistake(error: ErrorDetails) -> str:
    """pydantic's error as a line in the style of this project's messages."""
    places = [place for place in error["loc"] if isinstance(place, str)]  # without list indices
    if error["type"] == "missing":
        words = f"the field {places.pop()!r} is missing"
    elif error["type"] == "value_error":
        words = str(error["ctx"]["error"])
    else:
        found = "nothing (in quotes it is a text)" if error["input"] is None else cut(repr(error["input"]), 100)
        words = f"{WORDS[error['type']]} was expected, found {found}"
    return ": ".join([*places, words])
