"""A server's answers: a completion, or what is wrong with the answer. They are untrusted data."""

import json
from typing import Any

from teacherlm.core.errors import one_line
from teacherlm.core.redaction import redacted
from teacherlm.core.terminal import printable
from teacherlm.runtime.generation import Completion, Prompt, Sampling, cut_at

MOST_TOKENS = 10**9
SHOWN = 200
"""Maximum number of characters of a server's answer that a message quotes."""
LENGTH = ("length", "max_tokens", "model_length")
FILTER = ("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content")
"""The words in `finish_reason` with which servers say that the maximum number of tokens, or a filter, ended a text."""
NO_COMPLETION = "the server's answer is no completion:"


class BadAnswer(Exception):
    """An answer that is not a usable completion. The message says why."""


class LostAnswer(BadAnswer):
    """An answer whose text the server has written, and which cannot be read."""


def completion_of(prompt: Prompt, content: bytes, sampling: Sampling) -> Completion:
    """The completion in a server's answer.

    Raises:
        BadAnswer: the answer contains no completion that can be kept.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"{NO_COMPLETION} {type(error).__name__} {words_of(error)}") from error
    try:
        choice = answer["choices"][0]
        message = choice["message"] if prompt.messages else choice
        text = message["content" if prompt.messages else "text"]
    except (LookupError, TypeError) as error:
        place = "choices[0].message.content" if prompt.messages else "choices[0].text"
        raise BadAnswer(f"{NO_COMPLETION} it has no {place}: {quoted(content.decode('utf-8', 'replace'))}") from error
    reason = choice.get("finish_reason")
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        raise BadAnswer(f"the model refused: {quoted(refusal)}")
    if isinstance(reason, str) and reason.lower() in FILTER:
        raise BadAnswer(f"a filter of the server withheld the text (finish_reason: {quoted(reason)})")
    thinking = next((message[name] for name in ("reasoning_content", "reasoning") if message.get(name)), "")
    text = "" if text is None and thinking else text
    for part in (text, thinking):
        if not isinstance(part, str):
            raise BadAnswer(f"{NO_COMPLETION} its text is {quoted(repr(part))}")
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise BadAnswer(f"{NO_COMPLETION} its text has a lone surrogate, which is not a character") from error
    usage = answer.get("usage")
    prompt_tokens, new_tokens = (tokens_of(usage, f"{kind}_tokens") for kind in ("prompt", "completion"))
    kept = cut_at(text, sampling.stop)
    if kept != text:
        ended = "stop"
    elif isinstance(reason, str):
        ended = "length" if reason.lower() in LENGTH else "stop"
    else:
        ended = "length" if new_tokens >= sampling.num_tokens else "stop"
    return Completion(prompt, kept, prompt_tokens, new_tokens, ended, thinking)


def tokens_of(usage: Any, name: str) -> int:
    """A number of tokens from an answer's `usage`; 0 if it is missing.

    Raises:
        BadAnswer: the value is not a number of tokens.
    """
    if usage is None:
        return 0
    count = usage.get(name, 0) if isinstance(usage, dict) else None
    if type(count) is not int or not 0 <= count <= MOST_TOKENS:
        raise BadAnswer(f"{NO_COMPLETION} its usage is {quoted(repr(usage))}; {name} must be a number")
    return count


def used_tokens(content: bytes) -> tuple[int, int] | None:
    """(prompt tokens, new tokens) that an answer says were used; None if it does not say so."""
    try:
        usage = json.loads(content)["usage"]
        if not isinstance(usage, dict) or "prompt_tokens" not in usage:
            return None
        return tokens_of(usage, "prompt_tokens"), tokens_of(usage, "completion_tokens")
    except (ValueError, RecursionError, LookupError, TypeError, BadAnswer):
        return None


def quoted(text: str) -> str:
    """Text from a server in the form in which a message quotes it: printable, redacted and shortened."""
    return printable(redacted(text), SHOWN)


def words_of(error: BaseException) -> str:
    """The original cause of an error (connection refused, unknown name), which the libraries wrap several times."""
    while error.__context__ is not None:
        error = error.__context__
    return quoted(one_line(error))
