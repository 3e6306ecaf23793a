"""A student's conversations: the text before the assistant's turn, and whole conversations to train on.

The text with which an answer is asked for must begin the conversation that the student is trained on. Otherwise the
student would be asked in another way than it has learned. Templates of models that think write an empty thought in the
last turn of a conversation, but only write it before an answer if they are told that there is no thinking. So the
settings below are tried in their order.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from teacherlm.catalog.chat_templates import Messages
from teacherlm.core.errors import UserError
from teacherlm.runtime.chat_template import PROBE, ChatTemplate

ANSWER_PROBE = "The answer is (B). Snow is white."
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False}, {"thinking": False})
"""The template's settings that are tried: its own, and two names under which templates can be told not to think."""
DAY = datetime.datetime(2024, 7, 26)
"""The day that templates with a date get (Llama 3). With today's date, results would depend on the day."""


@dataclass(frozen=True)
class Conversation:
    """A conversation of a user's turn and an assistant's turn.

    Attributes:
        text: the whole conversation, as the template writes it.
        user, user_end: the positions of the user's content.
        opened: the number of characters before the assistant's turn: the text with which an answer is asked for.
        start, end: the positions of the assistant's content. A template may write a blank between `opened` and `start`.
    """

    text: str
    user: int
    user_end: int
    opened: int
    start: int
    end: int


class ChatStudent(ChatTemplate):
    """The chat template of a student.

    Attributes:
        lead: the blanks, if any, that the template writes between the text that asks for an answer and the answer.
        tail: the text that the template writes after the answer. It begins with the end of the turn.
        ends: the token that ends the assistant's turn.

    Raises:
        UserError: the template cannot be used: it fails, or leaves out a message, or does not end the assistant's turn
            with a token; or the text that asks for an answer does not begin a conversation with that answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path):
        if not tokenizer.is_fast:
            raise UserError(f"--chat needs a fast tokenizer (tokenizer.json), which {folder} does not have")
        self.settings: dict[str, Any] = SETTINGS[0]
        super().__init__(tokenizer, folder)
        self.settings, self.lead, self.tail = self.find_settings()
        self.head = self.apply([("user", PROBE)]).partition(PROBE)[0]
        self.ends = self.find_end()
        self.require_same_tokens()

    def find_settings(self) -> tuple[dict[str, Any], str, str]:
        """(settings of the template, lead, tail) with which asking for an answer agrees with training.

        Raises:
            UserError: there are no such settings.
        """
        messages = [("user", PROBE), ("assistant", ANSWER_PROBE)]
        for settings in SETTINGS:
            self.settings = settings
            opened, whole = self.apply(messages[:1]), self.apply(messages, opens=False)
            lead, found, tail = whole[len(opened) :].partition(ANSWER_PROBE)
            if whole.startswith(opened) and found and not lead.strip():
                return settings, lead, tail
        if ANSWER_PROBE not in whole:
            raise UserError(f"the chat template in {self.folder} leaves out the assistant's message; use --chat false")
        raise UserError(
            f"the chat template in {self.folder} asks for an answer with another text than it writes before an answer "
            "in a conversation, so that a student would be asked in another way than it learned; use --chat false"
        )

    def find_end(self) -> int:
        """The token that ends the assistant's turn.

        Raises:
            UserError: the template does not write a special token there.
        """
        ids = self.tokenizer(self.tail, add_special_tokens=False)["input_ids"]
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        found = next((token for token in ids if token in special), None)
        if found is None:
            raise UserError(
                f"the chat template in {self.folder} writes no special token after the assistant's turn, so that a "
                "student would not learn to end its answer; use --chat false"
            )
        return found

    def require_same_tokens(self) -> None:
        """Raises:
        UserError: a token spans the border before the assistant's turn.
        """
        conversation = self.conversation(PROBE, ANSWER_PROBE, str(self.folder))
        asked, whole = self.tokens(conversation.text[: conversation.opened]), self.tokens(conversation.text)
        if whole[: len(asked)] != asked:
            raise UserError(
                f"the chat template in {self.folder}: the tokens that ask for an answer do not begin a conversation "
                "with that answer, so that a student would be asked in another way than it learned; use --chat false"
            )

    @property
    def described(self) -> str:
        """What the template is told, as the end of a message; "" if it is told nothing."""
        told = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"; the chat template is told {told}" if told else ""

    def arguments(self) -> dict[str, Any]:
        return {"strftime_now": DAY.strftime, **self.settings}

    def asked(self, messages: Messages, written: str = "") -> str:
        """The text of a conversation up to the assistant's turn, and the beginning of that turn.

        Args:
            messages: (role, content) of each message. The last one is the user's.
            written: the beginning of the assistant's turn.
        """
        return self.render(messages) + (self.lead + written if written else "")

    def conversation(self, user: str, assistant: str, where: str) -> Conversation:
        """A conversation to train on.

        Args:
            user, assistant: the contents of the two turns. Blanks around them are dropped, as most templates do.
            where: what messages call the conversation.

        Raises:
            UserError: a turn is empty, or the template changes it.
        """
        user, assistant = user.strip(), assistant.strip()
        if not user or not assistant:
            raise UserError(f"{where}: the {'assistant' if user else 'user'}'s turn is empty; remove this sample")
        opened = self.apply([("user", user)])
        text = self.apply([("user", user), ("assistant", assistant)], opens=False)
        if text != f"{opened}{self.lead}{assistant}{self.tail}" or not opened.startswith(self.head + user):
            raise UserError(
                f"{where}: the chat template in {self.folder} changes the text of a turn; remove this sample, or use "
                "--chat false"
            )
        start = len(opened) + len(self.lead)
        return Conversation(
            text, len(self.head), len(self.head) + len(user), len(opened), start, start + len(assistant)
        )

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text that the template has written. It has the special tokens, so none are added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def with_end(known: int | Sequence[int] | None, end: int) -> int | list[int]:
    """The tokens that end a text, with the one that ends a chat student's turn. What has it already stays as it is.

    Args:
        known: the tokens in a model's generation settings.
        end: the token that ends the assistant's turn.
    """
    if known is None or known == end:
        return end
    ends = [known] if isinstance(known, int) else [*known]
    return ends if end in ends else [*ends, end]


def examples_as_turns(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The messages of few-shot examples, each of which is (the user's turn, the assistant's turn)."""
    return [message for user, assistant in pairs for message in (("user", user), ("assistant", assistant))]
