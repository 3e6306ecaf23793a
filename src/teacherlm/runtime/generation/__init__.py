"""Generation: engines take prompts and yield completions as they finish, in any order.

`Engine` says what an engine does. This package has the engines that run a model on this machine: transformers_engine.py
and vllm_engine.py. Enhancing and scoring use them. Enhancing has more engines (enhance/engines/), for teachers behind
servers and for explanations that people wrote.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from teacherlm.catalog.chat_templates import ANSWER, template_size

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
        top_logprobs: number of the most likely tokens whose probabilities are kept at each place; 0 keeps none.
    """

    num_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0


@dataclass(frozen=True)
class Prompt:
    """A prompt for one completion.

    Attributes:
        kind: the name of the prompt field (`cot_text`).
        index: index of the record in the input, from 0.
        number: number of the completion, from 0, if a record gets several.
        text: the text to complete.
        seed: seed (63 bits) for the random numbers of this completion.
        messages: a conversation for a chat model, which ends with a user's message. If there is none, the model
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
        """What the model is asked, as one text: the text to complete, or the conversation as JSON."""
        return asked_text(self.text, self.messages)


def asked_text(text: str, messages: tuple[Message, ...]) -> str:
    """The text from which the seed and the digest of a prompt are computed."""
    return json.dumps(messages) if messages else text


def draw_seed(seed: int, index: int, number: int, text: str, attempt: int = 0) -> int:
    """The seed of a completion, derived from the run's seed, the record or question, the completion's number, the
    attempt and the prompt."""
    digest = hashlib.sha256(f"{seed} {index} {number} {attempt} {text}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


SPECIAL_TOKENS = 8
"""Upper bound for the number of special tokens around a prompt."""


def most_tokens(folder: Path, longest: int, num_tokens: int, chat: bool) -> int:
    """An upper bound for the number of tokens of a prompt with its completion. A token has at least one byte.

    Args:
        folder: the model's folder.
        longest: number of bytes of the longest prompt.
        num_tokens: maximum number of new tokens.
        chat: whether prompts are rendered by the model's chat template.
    """
    return longest + num_tokens + SPECIAL_TOKENS + (template_size(folder) if chat else 0)


def cut_at(text: str, stops: tuple[str, ...]) -> str:
    """An answer up to its first stop text. What a model thinks before its answer is not cut.

    Some servers, for example that of transformers, keep the stop text and what follows.
    """
    thinking, mark, text = text.rpartition(ANSWER)
    for stop in stops:
        text = text.partition(stop)[0]
    return thinking + mark + text


@dataclass(frozen=True)
class Completion:
    """The text that a model wrote after a prompt.

    Attributes:
        new_tokens: number of new tokens, which includes the end-of-text token.
        ended: why the text ended: "stop" if the model ended it or a stop text came, "length" if the maximum number
            of tokens was reached, "filter" if the server withheld the rest.
        thinking: what the model thought before the text, if a server separates it.
        top_logprobs: the model's distribution at each token (catalog/top_logprobs.py), or an empty text.
    """

    prompt: Prompt
    text: str
    prompt_tokens: int
    new_tokens: int
    ended: str
    thinking: str = ""
    top_logprobs: str = ""


@dataclass(frozen=True)
class Failure:
    """A prompt that got no completion, and the reason."""

    prompt: Prompt
    reason: str


class Engine(Protocol):
    """What completes prompts. It is made with a `Sampling`, whose settings it follows by itself.

    It may have more methods: `start`, which is called before the first prompt, `close`, which is called at the end of
    the work, and `summary`, whose result is added to the counts of the manifest.
    """

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """Yield a completion or a failure for each prompt, as soon as it is there and in any order.

        An engine takes a prompt from the iterator only when it has room for it, so its memory does not depend on the
        number or the order of the prompts. After a signal that asks to stop, the iterator ends early. The engine then
        ends the completions that it has begun; what it leaves out is made by the next run.
        """
        ...
