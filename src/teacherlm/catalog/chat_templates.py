"""What chat models have in common: conversations, the template in a model's folder, the marks around thinking."""

from collections.abc import Sequence
from pathlib import Path

from teacherlm.core.json_files import load_object

Messages = Sequence[tuple[str, str]]
"""A conversation: (role, content) of each message. The roles are system, user and assistant."""

THINKING, ANSWER = "<think>", "</think>"
"""The texts around what a model thinks before its answer."""


def without_system(messages: Messages) -> list[tuple[str, str]]:
    """A conversation whose system message stands before the text of the first user's message."""
    (_, system), (role, content), *others = messages
    return [(role, f"{system}\n\n{content}"), *others]


def template_size(folder: Path) -> int:
    """Number of bytes of the chat templates in a model's folder; 0 if there is none.

    The fixed text of a template has at most as many tokens.
    """
    file = folder / "chat_template.jinja"
    size = file.stat().st_size if file.is_file() else 0
    try:
        described = load_object(folder / "tokenizer_config.json").get("chat_template")
    except (OSError, ValueError):  # loading the tokenizer reports it
        return size
    return size + (len(str(described).encode(errors="replace")) if described else 0)
