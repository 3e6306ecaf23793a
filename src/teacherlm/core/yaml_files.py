"""Safe reading of YAML files: a scalar is the text in the file, not the value that YAML 1.1 gives it.

YAML 1.1 reads an unquoted `yes` as a boolean, `1` as a number, and `24:00:00` as 86,400. Here every scalar is the text
in the file, and the field's type converts it (yaml_fields.py). A duplicate key is refused; YAML would keep the last.

A file may come from anybody, and a few aliases (`*name`) can expand to terabytes. Its size, its depth and its expanded
size are therefore limited (limits.py) while it is parsed, before any value is built.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from teacherlm.core.errors import UserError
from teacherlm.core.limits import YAML_BYTES, YAML_DEPTH, YAML_EXPANDED
from teacherlm.core.opening import open_ordinary
from teacherlm.core.terminal import shown

TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


class Unquoted(str):
    """A text that had no quotes in the file."""

    __slots__ = ()


class Loader(yaml.SafeLoader):
    """Loads scalars as texts, except nulls (`null`, `~`, nothing).

    Attributes:
        measured: id of a complete node -> (number of characters and values in it, its depth), both with aliases
            expanded.
    """

    def __init__(self, stream: str):
        super().__init__(stream)
        self.depth = 0
        self.measured: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Raises:
        yaml.MarkedYAMLError: the node exceeds a limit, or contains an alias of itself.
        """
        mark = self.peek_event().start_mark
        if self.depth == YAML_DEPTH:
            raise too_large(f"nested more than {YAML_DEPTH} levels deep", mark)
        alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and id(node) not in self.measured:
            raise too_large("an alias is inside the value that it stands for", mark)
        if not alias:
            parts = [self.measured[id(part)] for part in parts_of(node)]
            own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            self.measured[id(node)] = (
                1 + own + sum(size for size, _ in parts),
                1 + max((d for _, d in parts), default=0),
            )
        size, depth = self.measured[id(node)]
        if size > YAML_EXPANDED:
            raise too_large(f"its aliases expand to more than {YAML_EXPANDED:,} characters and values", mark)
        if depth > YAML_DEPTH:
            raise too_large(f"its aliases expand to more than {YAML_DEPTH} levels of nesting", mark)
        return node


def too_large(words: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(None, None, words, mark)


def parts_of(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that no text may have: control characters except tab and line breaks, and halves of surrogate pairs."""


def text_or_null(loader: Loader, node: yaml.ScalarNode) -> str | None:
    """Raises:
    yaml.MarkedYAMLError: the text has a control character ("\\0") or half of a surrogate pair ("\\ud800").
    """
    if found := CONTROL.search(node.value):
        word = f"the character \\u{ord(found[0]):04x} is not allowed; remove it"
        raise yaml.constructor.ConstructorError(None, None, word, node.start_mark)
    return node.value if node.style else Unquoted(node.value)


def unique_mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """Raises:
    yaml.YAMLError: a key is null, is not a text, or occurs twice.
    """
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == NULL:
            word = "a name was expected"
            if key.tag == NULL:
                word = f"{key.value or 'an empty key'}: put it in quotes"
            elif isinstance(key, yaml.MappingNode):  # `answer: {{ label }}`
                word = "a text that begins with { needs quotes"
            raise yaml.constructor.ConstructorError(None, None, word, key.start_mark)
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{shown(key.value)} occurs twice", key.start_mark)
        seen.add(key.value)
    mapping: dict[Any, Any] = yaml.SafeLoader.construct_mapping(loader, node, deep=True)
    return mapping


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (NULL, "tag:yaml.org,2002:merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.yaml_constructors = {
    TEXT: text_or_null,
    NULL: yaml.SafeLoader.construct_yaml_null,
    "tag:yaml.org,2002:map": unique_mapping,
    "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_yaml_seq,
    None: yaml.SafeLoader.construct_undefined,  # refuses explicit tags such as !!timestamp and !!python/object
}


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Its scalars are texts or None.

    Raises:
        UserError: the message names the file, and the line if it is known.
    """
    with open_ordinary(path) as file:
        data = file.read(YAML_BYTES + 1)
    if len(data) > YAML_BYTES:
        raise UserError(f"{path}: at most {YAML_BYTES:,} bytes were expected; is this the right file?")
    try:
        content = yaml.load(data.decode("utf-8"), Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}: not valid YAML{line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of names to values was expected")
    return content
