"""Requests of tasks as conversations, for a chat student.

The context of a request, `Q: ... A: The answer is (`, becomes what the chat template writes: the question as the user's
turn, and the beginning of the assistant's turn. Few-shot examples stand before the question in the user's turn, or are
turns of their own.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from teacherlm.catalog.turns import split_turns
from teacherlm.core.errors import UserError
from teacherlm.runtime.chat_student import ChatStudent, examples_as_turns
from teacherlm.scoring.language_model import LanguageModel
from teacherlm.scoring.task_api import Request, Task

FALSE = "use --chat false"


def use_chat(model: LanguageModel, folder: Path, tasks: Mapping[str, Any], is_chat: bool, as_turns: bool) -> None:
    """Let a model get the requests of tasks as conversations, or as plain texts.

    Args:
        folder: the model's folder, for messages.
        as_turns: whether each few-shot example has two turns of its own.

    Raises:
        UserError: the model's template cannot be used, or a task has no conversations.
    """
    model.use_chat(ChatStudent(model.tokenizer, folder) if is_chat else None, as_turns)
    if model.chat is None:
        return
    for name, task in tasks.items():
        if isinstance(task, Task):
            TaskInTurns(task, name, model.chat, as_turns).take_over()
        elif task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise UserError(f"the task {name} of lm-eval scores whole texts, which are no conversations; {FALSE}")


class TaskInTurns:
    """A task of this project whose requests are conversations.

    Attributes:
        plain: the context of each conversation as a plain text, by the conversation. Records of samples have the plain
            text, so that they can be compared with those of other students.
    """

    def __init__(self, task: Any, name: str, chat: ChatStudent | None, as_turns: bool):
        self.task, self.name, self.chat, self.as_turns = task, name, chat, as_turns
        self.examples: list[Any] = []
        self.draw, self.ask = task.fewshot_examples, task.requests
        self.plain: dict[str, str] = {}

    def take_over(self) -> None:
        """Replace the task's requests by conversations."""
        self.task.fewshot_examples, self.task.requests = self.fewshot_examples, self.requests
        self.task.plain_prompts = self.plain

    def fewshot_examples(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The examples that the task draws, which are kept for `requests`."""
        self.examples = list(self.draw(*args, **kwargs))
        return self.examples

    def requests(self, doc: Any) -> list[Request]:
        """The task's requests for a sample, as conversations."""
        self.examples = []
        return [self.in_conversation(request) for request in self.ask(doc)]

    def in_conversation(self, request: Any) -> Any:
        """Raises:
        UserError: the request's context has no two turns.
        """
        if not isinstance(request, Request) or not isinstance(request.arguments[0], str):
            return request  # the task reports it
        if request.kind == "loglikelihood_rolling":
            raise UserError(f"the task {self.name} scores whole texts, which are no conversations; {FALSE}")
        context, *others = request.arguments
        messages, written = self.turns(context)
        conversation = self.chat.asked(messages, written)
        self.plain[conversation] = context
        return replace(request, arguments=(conversation, *others))

    def turns(self, context: str) -> tuple[list[tuple[str, str]], str]:
        """The messages of a context, of which the last one is the user's, and what the assistant's turn has so far.

        Raises:
            UserError: the context has no two turns.
        """
        messages, question = self.examples_before(context) if self.as_turns else ([], context)
        turns = split_turns(question)
        if turns is None:
            raise UserError(
                f"the task {self.name}: a context of the form `Q: ... A: ...` was expected, of which the question is "
                f"the user's turn; {FALSE}"
            )
        user, written = turns
        return [*messages, ("user", user.strip())], written

    def examples_before(self, context: str) -> tuple[list[tuple[str, str]], str]:
        """The messages of the examples in a context, and the rest of the context.

        Raises:
            UserError: it is not known where the examples are.
        """
        asked = [self.task.doc_to_text(example) for example in self.examples]
        texts = [text + self.task.doc_to_target(example) for text, example in zip(asked, self.examples)]
        before = "".join(f"{text}\n\n" for text in texts)
        pairs = [split_turns(text, len(question)) for text, question in zip(texts, asked)]
        known = [(user.strip(), assistant.strip()) for user, assistant in filter(None, pairs)]
        wanted = self.task.config.num_fewshot or 0
        if not wanted:
            raise UserError("--fewshot_as_multiturn has no effect without --num_fewshot; leave it out")
        if not context.startswith(before) or len(known) < len(pairs) or len(pairs) < wanted:
            raise UserError(
                f"--fewshot_as_multiturn: the task {self.name} builds its examples in its own way; leave the flag out"
            )
        return examples_as_turns(known), context[len(before) :]
