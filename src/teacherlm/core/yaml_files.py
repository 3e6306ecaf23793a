"""YAML files, read safely: a scalar is the text that stands in the file, not what YAML 1.1 makes of it.

YAML 1.1 reads an unquoted `yes` as a boolean, `1` as a number, and `24:00:00` as 86,400. Here every scalar is the text
that stands in the file; the field that it is for then reads it (yaml_fields.py). A key that is there twice is refused,
where YAML would keep the last.

A file may come from anybody, and a few aliases (`*name`) can stand for terabytes, so its size, its depth and what its
aliases stand for are bounded (limits.py) while it is read, before anything is made of it.
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
    """A text that stood in the file without quotes."""

    __slots__ = ()


class Loader(yaml.SafeLoader):
    """Scalars are texts, but for nulls (`null`, `~`, nothing).

    Attributes:
        measured: for each node that is complete, by its id: letters and values in it, and how deep it is, both with
            each alias replaced by what it stands for.
    """

    def __init__(self, stream: str):
        super().__init__(stream)
        self.depth = 0
        self.measured: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Raises:
        yaml.MarkedYAMLError: the node is beyond a limit, or an alias stands for something that it is in itself.
        """
        mark = self.peek_event().start_mark
        if self.depth == YAML_DEPTH:
            raise too_large(f"nested more than {YAML_DEPTH} levels deep", mark)
        alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and id(node) not in self.measured:
            raise too_large("an alias is inside of what it stands for", mark)
        if not alias:
            parts = [self.measured[id(part)] for part in parts_of(node)]
            own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            self.measured[id(node)] = (
                1 + own + sum(size for size, _ in parts),
                1 + max((d for _, d in parts), default=0),
            )
        size, depth = self.measured[id(node)]
        if size > YAML_EXPANDED:
            raise too_large(f"with its aliases it stands for more than {YAML_EXPANDED:,} letters and values", mark)
        if depth > YAML_DEPTH:
            raise too_large(f"nested more than {YAML_DEPTH} levels deep by its aliases", mark)
        return node


def too_large(words: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(None, None, words, mark)


def parts_of(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""What no text of a description has: control characters but for tab and line breaks, and halves of surrogate pairs."""


def text_or_null(loader: Loader, node: yaml.ScalarNode) -> str | None:
    """Raises:
    yaml.MarkedYAMLError: the text has a control character or a half of a surrogate pair, as "\\0" and "\\ud800" make.
    """
    if found := CONTROL.search(node.value):
        word = f"the character \\u{ord(found[0]):04x} cannot stand here; remove it"
        raise yaml.constructor.ConstructorError(None, None, word, node.start_mark)
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
            raise yaml.constructor.ConstructorError(None, None, f"{shown(key.value)} is there twice", key.start_mark)
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
    None: yaml.SafeLoader.construct_undefined,  # of tags that stand in the file: !!timestamp, !!python/object
}


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; its scalars are texts or None.

    Raises:
        UserError: with the file, and the line where there is one.
    """
    with open_ordinary(path) as file:
        data = file.read(YAML_BYTES + 1)
    if len(data) > YAML_BYTES:
        raise UserError(f"{path}: at most {YAML_BYTES:,} bytes were expected; is this the right file?")
    try:
        content = yaml.load(data.decode("utf-8"), Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}: no valid YAML{line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping of names to values was expected")
    return content
