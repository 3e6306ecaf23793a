"""YAML files as people mean them: a scalar is what the field that it stands in wants, not what YAML 1.1 makes of it.

YAML 1.1 reads an unquoted `yes` as a boolean, `1` as a number, and `24:00:00` as 86,400. Here every scalar is first the
text that stands in the file; a field that is a number or a boolean then reads it as one. A key that is there twice is
refused, where YAML would keep the last.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from teacherlm.errors import UserError

TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
BOOLEANS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


class Unquoted(str):
    """A text that stood in the file without quotes."""

    __slots__ = ()


class Loader(yaml.SafeLoader):
    """Scalars are texts, but for nulls (`null`, `~`, nothing)."""


def text_or_null(loader: Loader, node: yaml.ScalarNode) -> str | None:
    return node.value if node.style else Unquoted(node.value)


def unique_mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Raises:
    yaml.YAMLError: a key is null or no text, or is there twice.
    """
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == NULL:
            word = f"{key.value or 'an empty key'}: put it in quotes" if key.tag == NULL else "a name was expected"
            raise yaml.constructor.ConstructorError(None, None, word, key.start_mark)
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (NULL, "tag:yaml.org,2002:merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_constructor(TEXT, text_or_null)
Loader.add_constructor("tag:yaml.org,2002:map", unique_mapping)


def read_yaml(path: Path, kind: type, computed: set[str]) -> dict[str, Any]:
    """The mapping in a YAML file, checked against a dataclass: no unknown key, no missing one.

    Args:
        computed: fields of the dataclass that do not come from the file.

    Raises:
        UserError: with the file, and the line or the field.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}: no valid YAML{line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of names to values was expected")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in computed}
    for key in content:
        if key not in fields:
            raise UserError(f"{path}: unknown field {key!r}; known: {', '.join(fields)}")
    for key, described in fields.items():
        required = described.default is dataclasses.MISSING and described.default_factory is dataclasses.MISSING
        if required and content.get(key) is None:
            raise UserError(f"{path}: the field {key!r} is missing")
    return {
        key: as_meant(value, annotation_of(fields[key].type), f"{path}: {key}")
        for key, value in content.items()
        if value is not None
    }


def annotation_of(annotation: Any) -> Any:
    """Of `str | None`, `str`: nulls never get this far."""
    return typing.get_args(annotation)[0] if isinstance(annotation, types.UnionType) else annotation


def as_meant(value: Any, annotation: Any, where: str) -> Any:
    """A value of a YAML file as a field of that type means it.

    Raises:
        UserError: the field is of another type.
    """
    kind = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation)
    if kind in (tuple, list):
        return kind(as_meant(part, arguments[0], where) for part in expect(value, list, "a list", where))
    if kind is Mapping:
        mapping = expect(value, dict, "a mapping", where)
        return {key: as_meant(part, arguments[1], f"{where}: {key}") for key, part in mapping.items()}
    if kind is Any:
        return value
    text = expect(value, str, WORDS[kind], where)
    try:
        return READERS[kind](text)
    except (ValueError, KeyError):
        raise UserError(f"{where}: {WORDS[kind]} was expected, found {value!r}") from None


def expect(value: Any, kind: type, words: str, where: str) -> Any:
    if not isinstance(value, kind):
        found = "nothing (in quotes it is a text)" if value is None else repr(value)
        raise UserError(f"{where}: {words} was expected, found {found}")
    return value


WORDS = {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}
READERS: dict[type, Callable[[str], Any]] = {
    str: str,  # no longer an Unquoted
    float: float,
    int: int,
    bool: lambda text: BOOLEANS[text.lower()],
}
