"""The requests for a server. Some models refuse parameters that others need, and the server's answer says which."""

import json
import re
import threading
from typing import Any

from teacherlm.catalog.chat_templates import Messages, without_system
from teacherlm.runtime.generation import Prompt, Sampling

UNSUPPORTED = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|unexpected|extra (inputs|fields|parameters)|extra_forbidden"
    r"|not (permitted|allowed|accepted)|cannot both|deprecated|only the default|instead",
    re.IGNORECASE,
)
"""The words with which servers refuse a parameter, as opposed to its value."""
LEFT_OUT = {
    "temperature": "--temperature has no effect: texts are sampled as the server does it by itself",
    "seed": "its texts cannot be repeated: another run gives other texts",
    "top_p": "--top_p has no effect",
    "stop": "texts are cut at the stop texts here, after the server has written more",
}
"""Parameter that can be left out -> what that means."""
NEUTRAL = {"top_k": -1, "min_p": 0, "repetition_penalty": 1}
"""Parameters of vLLM, SGLang and llama.cpp that are not OpenAI's, with the values that change nothing.

Without them, these servers use defaults of their own or those of the model's generation_config.json (a top_k of 20, a
repetition penalty of 1.05), and texts would not be sampled as --temperature and --top_p say.
"""
SYSTEM = "system message"
"""The name of a system message among the changes."""
OWN = ", ".join(NEUTRAL)
"""Their name among the changes."""


class Requests:
    """The bodies of requests, without the parameters that the server's model refuses.

    Args:
        model: the model's name, as the server knows it; None for the server's only model.
        sampling: how the next token is chosen.

    Attributes:
        changes: refused parameter -> "left out", or the parameter that is sent in its place.
    """

    def __init__(self, model: str | None, sampling: Sampling):
        self.model, self.sampling = model, sampling
        self.changes: dict[str, str] = {}
        self.lock = threading.Lock()

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The body of the request for a prompt."""
        sampling = self.sampling
        with self.lock:
            changes = dict(self.changes)
        asked: dict[str, Any] = {"prompt": prompt.text}
        if prompt.messages:
            messages: Messages = prompt.messages
            if SYSTEM in changes and messages[0][0] == "system":
                messages = without_system(messages)
            asked = {"messages": [{"role": role, "content": text} for role, text in messages]}
        parameters = {
            "max_tokens": sampling.num_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": prompt.seed % 2**31,  # llama.cpp accepts 31 bits
        }
        if OWN not in changes:
            parameters |= NEUTRAL
        if sampling.stop:
            parameters["stop"] = list(sampling.stop)
        kept = {changes.get(name, name): value for name, value in parameters.items() if changes.get(name) != "left out"}
        return {**({} if self.model is None else {"model": self.model}), **asked, **kept}

    def adapt(self, content: bytes, body: dict[str, Any]) -> bool:
        """Whether an answer refuses a parameter of a request, so that a request without it has to be sent.

        The parameter is left out or replaced from now on. A line says so once.
        """
        said, parameter = complaint_of(content)
        if "top_k" in body and (parameter in NEUTRAL or any(is_named(name, said) for name in NEUTRAL)):
            self.change(OWN, "left out", "if the server or the model's generation_config.json sets them, they apply")
            return True
        if not UNSUPPORTED.search(said):
            return False
        if "max_tokens" in body and parameter in (None, "max_tokens") and "max_completion_tokens" in said:
            self.change("max_tokens", "max_completion_tokens", "the same number is sent under that name")
            return True
        has_system = body.get("messages", [{}])[0].get("role") == "system"
        if has_system and parameter in (None, "messages") and "system" in said.lower():
            self.change(SYSTEM, "in the first user's message", "its text begins that message")
            return True
        if body.get("top_p") == 1 and parameter in (None, "top_p") and is_named("top_p", said):
            self.change("top_p", "left out", "it is 1, which changes nothing")  # some refuse it beside the temperature
            return True
        for name, meaning in LEFT_OUT.items():
            if name in body and (parameter == name or (parameter is None and is_named(name, said))):
                self.change(name, "left out", meaning)
                return True
        return False

    def change(self, name: str, how: str, meaning: str) -> None:
        with self.lock:
            is_new = name not in self.changes
            self.changes[name] = how
        if is_new and how == "left out":
            print(f"enhance: warning: the server's model takes no {name}; {meaning}", flush=True)
        elif is_new:
            print(f"enhance: the server's model takes no {name}, but {how}; {meaning}", flush=True)


def is_named(parameter: str, said: str) -> bool:
    """Whether an error message names a parameter. `stop` is a common word, so it must be in quotes."""
    around = "['\"`]" if parameter == "stop" else r"(?<![\w-])"
    return re.search(around + parameter + r"(?![\w-])", said) is not None


def complaint_of(content: bytes) -> tuple[str, str | None]:
    """(the words of a server's error, the parameter that the error is about if a field of the error names one)."""
    text = content.decode("utf-8", "replace")
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return text, None
    if not isinstance(answer, dict):
        return text, None
    error = answer.get("error", answer)
    if isinstance(error, dict):
        words = [error[name] for name in ("message", "code", "type", "detail") if isinstance(error.get(name), str)]
        parameter = error.get("param")
        if words and isinstance(parameter, str):
            return " ".join(words), parameter.rpartition(".")[2]
        if words:
            return " ".join(words), None
        if isinstance(details := error.get("detail"), list):  # pydantic's list of errors, as FastAPI sends it
            found = [one for one in details if isinstance(one, dict)]
            return " ".join(f"{one.get('loc')} {one.get('msg')} {one.get('type')}" for one in found), None
    return text, None
