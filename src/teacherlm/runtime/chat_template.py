"""Conversations in the form that a chat model expects: the tokenizer's chat template, and back.

The template is a Jinja2 text in the model's folder. transformers runs it in Jinja2's sandbox, which keeps it away from
Python's objects.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from teacherlm.catalog.chat_templates import ANSWER, THINKING, Messages, without_system
from teacherlm.core.errors import UserError, one_line
from teacherlm.runtime.tokens import decode_completion

PROBE, SYSTEM_PROBE = "Is water wet?", "You are a careful teacher."


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        folder: the model's folder, for messages.

    Attributes:
        opens_thinking: whether the template itself writes the mark with which thinking begins.
        marks: the marks around the thinking that are special tokens: token -> mark. Decoding drops all other special
            tokens.

    Raises:
        UserError: the template cannot be used: it fails, or its text lacks the message.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path):
        self.tokenizer, self.folder = tokenizer, folder
        text = self.apply([("user", PROBE)])
        if PROBE not in text:
            raise UserError(f"the chat template in {folder} leaves out the user's message; use --chat false")
        self.opens_thinking = text.rstrip().endswith(THINKING)
        special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens)
        self.marks = {token: mark for token, mark in special if mark in (THINKING, ANSWER)}

    @cached_property
    def takes_system(self) -> bool:
        """Whether the template takes a system message. Gemma's refuses it, and others leave it out."""
        try:
            taken = SYSTEM_PROBE in self.apply([("system", SYSTEM_PROBE), ("user", PROBE)])
        except UserError:
            taken = False
        if not taken:
            print(
                f"the chat template in {self.folder} takes no system message; its text begins the first user's message",
                flush=True,
            )
        return taken

    def arguments(self) -> dict[str, Any]:
        """Further values that the template gets."""
        return {}

    def apply(self, messages: Messages, opens: bool = True) -> str:
        """The text of a conversation.

        Args:
            opens: whether it ends with what begins the assistant's answer.

        Raises:
            UserError: the template fails.
        """
        conversation = [{"role": role, "content": content} for role, content in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                conversation, add_generation_prompt=opens, tokenize=False, **self.arguments()
            )
        except Exception as error:  # a template can raise anything
            why = one_line(error.__cause__ or error)
            raise UserError(f"the chat template in {self.folder} fails: {why}; use --chat false") from error
        return text

    def render(self, messages: Messages) -> str:
        """The text that begins the teacher's answer to a conversation."""
        if messages[0][0] == "system" and not self.takes_system:
            messages = without_system(messages)
        return self.apply(messages)

    def encode(self, messages: Messages) -> list[int]:
        """The tokens of a conversation. The template writes the special tokens, so the tokenizer adds none."""
        ids: list[int] = self.tokenizer(self.render(messages), add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """The text of the new tokens that follow a conversation, with the marks around the thinking."""
        pieces = [THINKING] if self.opens_thinking else []
        start = 0
        for position, token in enumerate(new):
            if token in self.marks:
                before = [*prompt, *new[:start]]
                pieces += [decode_completion(self.tokenizer, before, new[start:position]), self.marks[token]]
                start = position + 1
        pieces.append(decode_completion(self.tokenizer, [*prompt, *new[:start]], new[start:]))
        return "".join(pieces)
