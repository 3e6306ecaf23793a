"""A teacher behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, transformers or a paid service.

TEACHER=http://host:port/model names it. If the server needs a key, the key comes only from the environment
(OPENAI_API_KEY). The server's answers are not trusted: any answer becomes either a completion or a failure of one
record.
"""

import email.utils
import http.client
import http.cookiejar
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from teacherlm.catalog.servers import key_for, split_address
from teacherlm.core import interrupts
from teacherlm.core.errors import UserError, one_line
from teacherlm.core.redaction import redacted
from teacherlm.core.terminal import printable
from teacherlm.enhance.engines import Completion, Failure, Prompt, Sampling

RETRIES = 8
LONGEST_WAIT = 60
"""Maximum number of seconds between two attempts, even if the server asks for more. By default the waits are 1, 2, 4,
... seconds, about three minutes in all, so that a server has time to restart."""
TRIED_AGAIN = (408, 409, 429, 500, 502, 503, 504)
TIMEOUT = (10, 600)
"""Maximum number of seconds to connect, and between two bytes of an answer. A busy server may need long for a text."""
WHOLE_ANSWER = 3600
"""Maximum number of seconds for one prompt with all attempts. Without it, a slow trickle of bytes would never end."""
FIRST_ANSWER = 600
"""Maximum number of seconds for the answer to the first request, which asks for no text."""
LARGEST = 4 << 20
"""Maximum number of bytes of an answer. A completion of 2,048 tokens has about 10 kB."""
MOST_TOKENS = 10**9
GRACE = 3
"""Seconds that running requests may still take after a signal. The next run repeats those that did not finish."""
LOOK = 0.2
"""Seconds between two checks whether a signal has arrived."""
SHOWN = 200
"""Maximum number of characters of a server's answer that a message quotes."""


class BadAnswer(Exception):
    """An answer that is not a usable completion. The message says why."""


class TryAgain(Exception):
    """A request failed, but another attempt may succeed.

    Attributes:
        wait: seconds that the server asks to wait; None if it does not ask.
    """

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


class OpenAIEngine:
    """A teacher that gets prompts over HTTP, several at a time.

    Args:
        url: http://host:port/model, or http://host:port/v1/model.
        sampling: how the next token is chosen.
        concurrency: maximum number of requests at a time; the server batches them.

    Raises:
        UserError: the server does not answer or redirects to another address, or the key must not be sent to it.
    """

    def __init__(self, url: str, sampling: Sampling, concurrency: int = 64):
        self.address, self.model = split_address(url)
        self.sampling = sampling
        self.concurrency = concurrency
        self.session = make_session(self.address, concurrency)
        self.said = threading.Event()
        answer = self.first_answer()
        if answer.is_redirect:
            raise UserError(
                f"the server at {self.address} redirects to {quoted(answer.headers.get('Location', ''))}; prompts and "
                "key are not sent there; if you trust that server, give its address as TEACHER"
            )

    def first_answer(self) -> requests.Response:
        """The server's answer to a request for its models, which shows that it is running. The body is not read.

        The request runs in a separate thread, because the library has no timeout for what precedes an answer: a server
        could send `100 Continue`, or a header character by character, for ever.

        Raises:
            UserError: the server does not answer within FIRST_ANSWER seconds.
        """
        answers: queue.SimpleQueue[requests.Response | Exception] = queue.SimpleQueue()

        def ask() -> None:
            url = f"{self.address}/v1/models"
            try:
                answers.put(self.session.get(url, timeout=TIMEOUT, stream=True, allow_redirects=False))
            except Exception as error:  # untrusted data can make a library raise anything
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = answers.get(timeout=FIRST_ANSWER)
        except queue.Empty:
            raise UserError(
                f"the server at {self.address} did not answer within {FIRST_ANSWER} seconds; check the address TEACHER"
            ) from None
        if isinstance(answer, Exception):
            raise UserError(
                f"no server at {self.address}: {words_of(answer)}; start it, or correct the address TEACHER"
            ) from answer
        answer.close()
        return answer

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """Complete all prompts. Each completion is yielded as soon as its answer arrives.

        After a signal that asks to stop, this waits at most GRACE seconds for the answers to running requests.
        """
        answers: queue.SimpleQueue[tuple[int, Completion | Failure]] = queue.SimpleQueue()
        under_way: dict[int, tuple[Prompt, float]] = {}
        ending = threading.Event()
        number, exhausted, asked_since = 0, False, None
        try:
            while under_way or not exhausted:
                while not exhausted and len(under_way) < self.concurrency:
                    prompt = next(prompts, None)
                    if prompt is None:
                        exhausted = True
                        break
                    number += 1
                    under_way[number] = prompt, time.monotonic()
                    # The thread is a daemon, so that neither an exit nor a signal waits for a server.
                    threading.Thread(target=self.work, args=(number, prompt, answers, ending), daemon=True).start()
                try:
                    done, result = answers.get(timeout=LOOK)
                except queue.Empty:
                    pass
                else:
                    if under_way.pop(done, None) is not None:
                        yield result
                now = time.monotonic()
                if interrupts.is_asked():
                    ending.set()  # so that no thread waits for another attempt
                    asked_since = asked_since or now
                    if now - asked_since > GRACE:
                        return
                for late in [one for one, (_, began) in under_way.items() if now - began > WHOLE_ANSWER]:
                    prompt, _ = under_way.pop(late)
                    yield Failure(prompt, f"the server did not answer within {WHOLE_ANSWER} seconds")
        finally:
            ending.set()

    def work(self, number: int, prompt: Prompt, answers: queue.SimpleQueue, ending: threading.Event) -> None:
        """Run in a separate thread: request one completion, and put the result or the failure into `answers`."""
        try:
            result = self.ask(prompt, ending)
        except Exception as error:  # untrusted data can make a library raise anything
            result = Failure(prompt, f"the server's answer cannot be read: {type(error).__name__} {words_of(error)}")
        answers.put((number, result))

    def ask(self, prompt: Prompt, ending: threading.Event) -> Completion | Failure:
        """Request one completion. If it still fails after all retries, or when `ending` is set, return a Failure that
        quotes the server."""
        began = time.monotonic()
        for attempt in range(RETRIES + 1):
            try:
                return completion_of(prompt, self.post(self.body_for(prompt), began), self.sampling.stop)
            except BadAnswer as error:
                return Failure(prompt, str(error))
            except TryAgain as error:
                why = str(error)
                wait = 2**attempt if error.wait is None else error.wait
                if wait > LONGEST_WAIT and error.wait is not None and not self.said.is_set():
                    self.said.set()
                    print(
                        f"enhance: the server asks to wait {wait:.0f} seconds (Retry-After); requests are repeated "
                        f"every {LONGEST_WAIT} seconds, at most {RETRIES} times",
                        flush=True,
                    )
                out_of_time = time.monotonic() + min(wait, LONGEST_WAIT) - began > WHOLE_ANSWER
                if attempt == RETRIES or out_of_time or ending.wait(min(wait, LONGEST_WAIT)):
                    break
        return Failure(prompt, why)

    def body_for(self, prompt: Prompt) -> dict[str, Any]:
        body = {
            "model": self.model,
            "prompt": prompt.text,
            "max_tokens": self.sampling.num_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": prompt.seed % 2**31,  # llama.cpp accepts 31 bits
        }
        return body | ({"stop": list(self.sampling.stop)} if self.sampling.stop else {})

    def post(self, body: dict[str, Any], began: float) -> bytes:
        """The bytes of the server's answer.

        Raises:
            BadAnswer: the answer is an error, or too large, or too late.
            TryAgain: the request failed for a reason that may be temporary.
        """
        url = f"{self.address}/v1/completions"
        try:
            with self.session.post(url, json=body, timeout=TIMEOUT, stream=True, allow_redirects=False) as answer:
                content = read(answer, began)
        except (requests.RequestException, OSError) as error:
            raise TryAgain(f"the server did not answer: {words_of(error)}") from error
        if answer.is_redirect:
            where = quoted(answer.headers.get("Location", ""))
            raise BadAnswer(f"the server redirects to {where}; prompts are not sent there")
        if answer.status_code == 200:
            return content
        words = f"the server answered {answer.status_code}: {quoted(content.decode('utf-8', 'replace'))}"
        if answer.status_code not in TRIED_AGAIN:
            raise BadAnswer(words)
        wait = asked_wait(answer.headers.get("Retry-After"))
        raise TryAgain(words + (f" (it asks to wait {wait:.0f} seconds)" if wait else ""), wait)


def make_session(address: str, concurrency: int) -> requests.Session:
    """A session for requests to a server. From the environment it takes only the key, and for https:// the proxy and
    the certificates.

    Without `trust_env`, ~/.netrc cannot replace the key. A proxy is used for https:// only: it then sees the name of
    the server, but neither the key nor the prompts.
    """
    session = requests.Session()
    session.trust_env = False
    session.headers["Accept-Encoding"] = "identity"  # a small compressed answer could become huge
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    if (key := key_for(address)) is not None:
        session.headers["Authorization"] = f"Bearer {key}"
    if address.startswith("https://"):
        session.proxies = requests.utils.get_environ_proxies(address)
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=concurrency))
    return session


def read(answer: requests.Response, began: float) -> bytes:
    """The body of an answer. It is read piece by piece, so that a slow server cannot block the thread for hours.

    Raises:
        BadAnswer: the answer is too long or too late, or compressed although that was not requested.
    """
    if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise BadAnswer("the server's answer is compressed, although that was not requested")
    content = bytearray()
    try:
        while piece := answer.raw.read1(1 << 16, decode_content=False):
            content += piece
            if len(content) > LARGEST:
                raise BadAnswer(f"the server's answer has more than {LARGEST} bytes")
            if time.monotonic() - began > WHOLE_ANSWER:
                raise BadAnswer(f"the server did not answer within {WHOLE_ANSWER} seconds")
    except (HTTPError, http.client.HTTPException) as error:
        raise TryAgain(f"the server's answer broke off: {words_of(error)}") from error
    return bytes(content)


def asked_wait(header: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait, as a number or a date; None if it is missing or unreadable."""
    if header is None:
        return None
    header = header.strip()
    if header.isascii() and header.isdigit():
        return float(header[:18])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def completion_of(prompt: Prompt, content: bytes, stops: tuple[str, ...]) -> Completion:
    """The completion in a server's answer.

    Raises:
        BadAnswer: the answer contains no completion that can be kept.
    """
    no_completion = "the server's answer is no completion:"
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"{no_completion} {type(error).__name__} {words_of(error)}") from error
    try:
        text = answer["choices"][0]["text"]
    except (LookupError, TypeError) as error:
        raise BadAnswer(
            f"{no_completion} it has no choices[0].text: {quoted(content.decode('utf-8', 'replace'))}"
        ) from error
    if not isinstance(text, str):
        raise BadAnswer(f"{no_completion} its text is {quoted(repr(text))}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadAnswer(f"{no_completion} its text has a lone surrogate, which is not a character") from error
    for stop in stops:  # some servers, for example that of transformers, keep the stop text and what follows
        text = text.partition(stop)[0]
    return Completion(
        prompt, text, *(tokens_of(answer.get("usage"), f"{kind}_tokens") for kind in ("prompt", "completion"))
    )


def tokens_of(usage: Any, name: str) -> int:
    """A number of tokens from an answer's `usage`; 0 if it is missing.

    Raises:
        BadAnswer: the value is not a number of tokens.
    """
    if usage is None:
        return 0
    count = usage.get(name, 0) if isinstance(usage, dict) else None
    if type(count) is not int or not 0 <= count <= MOST_TOKENS:
        raise BadAnswer(
            f"the server's answer is no completion: its usage is {quoted(repr(usage))}; {name} must be a number"
        )
    return count


def quoted(text: str) -> str:
    """Text from a server in the form in which a message quotes it: printable, redacted and shortened."""
    return printable(redacted(text), SHOWN)


def words_of(error: BaseException) -> str:
    """The original cause of an error (connection refused, unknown name), which the libraries wrap several times."""
    while error.__context__ is not None:
        error = error.__context__
    return quoted(one_line(error))
