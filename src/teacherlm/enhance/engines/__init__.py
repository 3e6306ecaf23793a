"""Engines: prompts in, completions out as they finish, in any order.

transformers   the teacher on this machine's CPU or GPUs
vllm           the same with vLLM (an extra), for GPUs
openai         a teacher behind any OpenAI-compatible server
field          explanations that people wrote, in a field of the records

An engine is a function `complete(prompts) -> Iterator[Completion | Failure]`. It takes prompts from the iterator when
it has room for them, so neither their number nor their order matters to its memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        num_tokens: at most so many new tokens.
        temperature: 0 takes the likeliest token; 1 samples from the model's own distribution.
        top_p: only the likeliest tokens whose probabilities sum to this are sampled from.
        stop: texts that end a completion; they are not part of it.
    """

    num_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One completion to be made.

    Attributes:
        kind: the prompt field that it is of (`cot_text`).
        index: number of the record in the input, from 0.
        number: of the completion, where a record gets several.
        text: what is completed.
        seed: of this completion's own draws, 63 bits.
    """

    kind: str
    index: int
    number: int
    text: str
    seed: int


@dataclass(frozen=True)
class Completion:
    """What the teacher wrote after a prompt; `new_tokens` counts the end of text too."""

    prompt: Prompt
    text: str
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Failure:
    """A prompt that got no completion, and why."""

    prompt: Prompt
    reason: str


Engine = Callable[[Iterator[Prompt]], Iterator[Completion | Failure]]
