"""Engines take prompts and yield completions as they finish, in any order.

transformers   the teacher runs on this machine's CPU or GPUs
vllm           the teacher runs in vLLM (an optional extra), on GPUs
openai         the teacher is behind an OpenAI-compatible server
field          people wrote the explanations; they are in a field of the records

An engine is a function `complete(prompts) -> Iterator[Completion | Failure]`. It takes a prompt from the iterator only
when it has room for it, so its memory does not depend on the number or the order of the prompts.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Message = tuple[str, str]
"""A message of a conversation: (role, content). The roles are system, user and assistant."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        num_tokens: maximum number of new tokens.
        temperature: 0 takes the most likely token; 1 samples from the model's unchanged distribution.
        top_p: sample only from the most likely tokens whose probabilities sum to this.
        stop: texts that end a completion; they are not part of it.
    """

    num_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A prompt for one completion.

    Attributes:
        kind: the name of the prompt field (`cot_text`).
        index: index of the record in the input, from 0.
        number: number of the completion, from 0, if a record gets several.
        text: the text to complete.
        seed: seed (63 bits) for the random numbers of this completion.
        messages: a conversation for a chat teacher, which ends with a user's message. If there is none, the teacher
            completes `text`.
    """

    kind: str
    index: int
    number: int
    text: str
    seed: int
    messages: tuple[Message, ...] = ()

    @property
    def asked(self) -> str:
        """What the teacher is asked, as one text: the text to complete, or the conversation as JSON."""
        return asked_text(self.text, self.messages)


def asked_text(text: str, messages: tuple[Message, ...]) -> str:
    """The text from which the seed and the digest of a prompt are computed."""
    return json.dumps(messages) if messages else text


@dataclass(frozen=True)
class Completion:
    """The text that the teacher wrote after a prompt.

    Attributes:
        new_tokens: number of new tokens, which includes the end-of-text token.
        ended: why the text ended: "stop" if the teacher ended it or a stop text came, "length" if the maximum number
            of tokens was reached, "filter" if the server withheld the rest.
        thinking: what the teacher thought before the text, if a server separates it.
    """

    prompt: Prompt
    text: str
    prompt_tokens: int
    new_tokens: int
    ended: str
    thinking: str = ""


@dataclass(frozen=True)
class Failure:
    """A prompt that got no completion, and the reason."""

    prompt: Prompt
    reason: str


Engine = Callable[[Iterator[Prompt]], Iterator[Completion | Failure]]
