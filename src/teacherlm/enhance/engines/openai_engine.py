"""A teacher behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, transformers or a paid service.

TEACHER=http://host:port/model names it. If the server needs a key, the key comes only from the environment
(OPENAI_API_KEY, or the variable that --key_variable names). The server's answers are not trusted: any answer becomes
either a completion or a failure of one record.
"""

import http.client
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import requests
from urllib3.exceptions import HTTPError

from teacherlm.catalog.servers import KEY, key_for, split_address
from teacherlm.core import interrupts
from teacherlm.core.errors import UserError
from teacherlm.enhance.engines.budget import Budget
from teacherlm.enhance.engines.pace import Pace
from teacherlm.enhance.engines.server_answers import BadAnswer, LostAnswer, completion_of, quoted, used_tokens, words_of
from teacherlm.enhance.engines.server_requests import Requests
from teacherlm.enhance.engines.server_session import asked_wait, make_session
from teacherlm.runtime.generation import Completion, Failure, Prompt, Sampling

CONCURRENCY = 64
"""Maximum number of requests at a time, by default."""
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
GRACE = 3
"""Seconds that running requests may still take after a signal. The next run repeats those that did not finish."""
LOOK = 0.2
"""Seconds between two checks whether a signal has arrived."""
TEMPLATE_TOKENS = 64
"""Tokens that a server is assumed to put around a prompt."""


class RefusedParameter(Exception):
    """The server refused a parameter of a request. The next request does without it."""


class TryAgain(Exception):
    """A request failed, but another attempt may succeed.

    Attributes:
        wait: seconds that the server asks to wait; None if it does not ask.
        is_paid: whether the server may have written a text, which was lost on the way.
    """

    def __init__(self, why: str, wait: float | None = None, is_paid: bool = False):
        super().__init__(why)
        self.wait, self.is_paid = wait, is_paid


class OpenAIEngine:
    """A teacher that gets prompts over HTTP, several at a time.

    Args:
        url: http://host:port/model, or http://host:port/v1/model; or the address without the model.
        sampling: how the next token is chosen.
        concurrency: maximum number of requests at a time; the server batches them.
        model: the model's name, if the address does not contain it.
        key_variable: the environment variable with the key.
        pace: how many requests may begin in a minute.
        budget: how many tokens may be spent; None means no limit.
        sends_model: whether requests name the model. A server with one model needs no name.
        key: the key, if it is not in the environment.
        is_alive: whether the server is running. When it is not, no more requests are made.

    Raises:
        UserError: the server does not answer or redirects to another address, or the key must not be sent to it.
    """

    def __init__(
        self,
        url: str,
        sampling: Sampling,
        concurrency: int = CONCURRENCY,
        model: str | None = None,
        key_variable: str = KEY,
        pace: Pace | None = None,
        budget: Budget | None = None,
        sends_model: bool = True,
        key: str | None = None,
        is_alive: Callable[[], bool] = lambda: True,
    ):
        server = split_address(url, model)
        self.address, self.base, self.model = server.address, server.base, server.model
        self.sampling = sampling
        self.concurrency = concurrency
        self.pace, self.budget = pace or Pace(), budget
        self.requests = Requests(self.model if sends_model else None, sampling)
        self.session = make_session(self.address, concurrency, key or key_for(self.address, key_variable))
        self.is_alive = is_alive
        self.said = threading.Event()
        answer = self.first_answer()
        if answer.is_redirect:
            raise UserError(
                f"the server at {self.address} redirects to {quoted(answer.headers.get('Location', ''))}; prompts and "
                "key are not sent there; if you trust that server, give its address as TEACHER"
            )

    def summary(self) -> dict[str, Any]:
        """Counts for the manifest: the parameters that the server refused, and what was spent."""
        counts: dict[str, Any] = {"refused_parameters": dict(self.requests.changes)} if self.requests.changes else {}
        return counts | (self.budget.summary() if self.budget is not None else {})

    def first_answer(self) -> requests.Response:
        """The server's answer to a request for its models, which shows that it is running. The body is not read.

        The request runs in a separate thread, because the library has no timeout for what precedes an answer: a server
        could send `100 Continue`, or a header character by character, for ever.

        Raises:
            UserError: the server does not answer within FIRST_ANSWER seconds.
        """
        answers: queue.SimpleQueue[requests.Response | Exception] = queue.SimpleQueue()

        def ask() -> None:
            url = f"{self.base}/models"
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
        waiting: Prompt | None = None
        try:
            while under_way or not exhausted:
                pause = LOOK
                exhausted = exhausted or not self.is_alive()
                while not exhausted and len(under_way) < self.concurrency:
                    waiting = waiting or next(prompts, None)
                    if waiting is None:
                        exhausted = True
                        break
                    if self.budget is not None and not self.budget.reserve(*self.most_tokens(waiting)):
                        if not under_way:  # otherwise running requests may need less than was reserved for them
                            self.budget.stopped = exhausted = True
                        break
                    if wait := self.pace.begin(sum(self.most_tokens(waiting))):
                        self.release(waiting)
                        pause = min(pause, wait)
                        break
                    prompt, waiting = waiting, None
                    number += 1
                    under_way[number] = prompt, time.monotonic()
                    # The thread is a daemon, so that neither an exit nor a signal waits for a server.
                    threading.Thread(target=self.work, args=(number, prompt, answers, ending), daemon=True).start()
                try:
                    done, result = answers.get(timeout=pause)
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
                        for prompt, _ in under_way.values():
                            self.account(prompt, None)
                        return
                for late in [one for one, (_, began) in under_way.items() if now - began > WHOLE_ANSWER]:
                    prompt, _ = under_way.pop(late)
                    yield Failure(prompt, f"the server did not answer within {WHOLE_ANSWER} seconds")
            if waiting is not None and not self.is_alive():
                yield Failure(waiting, "the server has ended")
        finally:
            ending.set()

    def most_tokens(self, prompt: Prompt) -> tuple[int, int]:
        """Upper bounds for the tokens of a prompt, which has at most one token per byte, and of its completion."""
        return len(prompt.asked.encode(errors="replace")) + TEMPLATE_TOKENS, self.sampling.num_tokens

    def release(self, prompt: Prompt) -> None:
        if self.budget is not None:
            self.budget.release(*self.most_tokens(prompt))

    def account(self, prompt: Prompt, content: bytes | None) -> None:
        """Count what an answer cost. An answer that does not say it, or was lost, counts with the upper bounds."""
        most = self.most_tokens(prompt)
        used = most if content is None else used_tokens(content) or most
        self.pace.correct(sum(most), sum(used))
        if self.budget is not None:
            self.budget.spend(*used)

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
        try:
            return self.ask_until(prompt, ending, time.monotonic())
        finally:
            self.release(prompt)

    def ask_until(self, prompt: Prompt, ending: threading.Event, began: float) -> Completion | Failure:
        attempt, is_first = 0, True
        while True:
            if not is_first and not self.pace.begin_later(sum(self.most_tokens(prompt)), ending):
                return Failure(prompt, "interrupted")
            is_first = False
            try:
                content = self.post(self.requests.body(prompt), began)
                self.account(prompt, content)
                return completion_of(prompt, content, self.sampling)
            except LostAnswer as error:
                self.account(prompt, None)
                return Failure(prompt, str(error))
            except BadAnswer as error:
                return Failure(prompt, str(error))
            except RefusedParameter:
                self.pace.correct(sum(self.most_tokens(prompt)), 0)
            except TryAgain as error:
                if not self.goes_on(prompt, error, attempt, began, ending):
                    return Failure(prompt, str(error))
                attempt += 1

    def goes_on(self, prompt: Prompt, error: TryAgain, attempt: int, began: float, ending: threading.Event) -> bool:
        """Wait before another attempt. False if there is none."""
        if error.is_paid:
            self.account(prompt, None)
            if self.budget is not None and not self.budget.may_repeat():
                return False
        else:
            self.pace.correct(sum(self.most_tokens(prompt)), 0)
        wait = 2**attempt if error.wait is None else error.wait
        if wait > LONGEST_WAIT and error.wait is not None and not self.said.is_set():
            self.said.set()
            print(
                f"enhance: the server asks to wait {wait:.0f} seconds (Retry-After); requests are repeated "
                f"every {LONGEST_WAIT} seconds, at most {RETRIES} times",
                flush=True,
            )
        wait = min(wait, LONGEST_WAIT)
        if error.wait is not None:
            self.pace.hold(wait)
        out_of_time = time.monotonic() + wait - began > WHOLE_ANSWER
        return attempt < RETRIES and not out_of_time and self.is_alive() and not ending.wait(wait)

    def post(self, body: dict[str, Any], began: float) -> bytes:
        """The bytes of the server's answer.

        Raises:
            BadAnswer: the answer is an error, or too large, or too late.
            RefusedParameter: the answer refuses a parameter.
            TryAgain: the request failed for a reason that may be temporary.
        """
        url = f"{self.base}/{'chat/completions' if 'messages' in body else 'completions'}"
        try:
            with self.session.post(url, json=body, timeout=TIMEOUT, stream=True, allow_redirects=False) as answer:
                content = read(answer, began)
        except (requests.RequestException, OSError) as error:
            is_paid = isinstance(error, requests.ReadTimeout)
            raise TryAgain(f"the server did not answer: {words_of(error)}", is_paid=is_paid) from error
        if answer.is_redirect:
            where = quoted(answer.headers.get("Location", ""))
            raise BadAnswer(f"the server redirects to {where}; prompts are not sent there")
        if answer.status_code == 200:
            return content
        words = f"the server answered {answer.status_code}: {quoted(content.decode('utf-8', 'replace'))}"
        if answer.status_code in (400, 422) and self.requests.adapt(content, body):
            raise RefusedParameter
        if answer.status_code not in TRIED_AGAIN:
            raise BadAnswer(words)
        wait = asked_wait(answer.headers.get("Retry-After"))
        raise TryAgain(words + (f" (it asks to wait {wait:.0f} seconds)" if wait else ""), wait)


def read(answer: requests.Response, began: float) -> bytes:
    """The body of an answer. It is read piece by piece, so that a slow server cannot block the thread for hours.

    Raises:
        LostAnswer: the answer is too long or too late, or compressed although that was not requested.
    """
    if answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise LostAnswer("the server's answer is compressed, although that was not requested")
    content = bytearray()
    try:
        while piece := answer.raw.read1(1 << 16, decode_content=False):
            content += piece
            if len(content) > LARGEST:
                raise LostAnswer(f"the server's answer has more than {LARGEST} bytes")
            if time.monotonic() - began > WHOLE_ANSWER:
                raise LostAnswer(f"the server did not answer within {WHOLE_ANSWER} seconds")
    except (HTTPError, http.client.HTTPException) as error:
        raise TryAgain(f"the server's answer broke off: {words_of(error)}", is_paid=True) from error
    return bytes(content)
