"""A teacher behind an OpenAI-compatible server: vLLM's, SGLang's, llama.cpp's, transformers' or a paid one.

TEACHER=http://host:port/model. The key, where one is needed, comes from the environment (OPENAI_API_KEY) only.
"""

import os
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from engines import Completion, Failure, Prompt, Sampling
from teacherlm.errors import UserError, one_line

RETRIES = Retry(
    total=8,
    backoff_factor=1,  # 1, 2, 4, ... seconds: some three minutes in all, as a server needs to come back
    backoff_max=60,
    status_forcelist=(408, 409, 429, 500, 502, 503, 504),
    allowed_methods=None,  # a completion that is asked for twice does no harm
    raise_on_status=False,
)
TIMEOUT = (10, 600)
"""Seconds to connect, and between two bytes of an answer: a long text on a busy server takes its time."""


class OpenAIEngine:
    """A teacher that is asked over HTTP, several prompts at a time.

    Args:
        url: http://host:port/model, or with /v1/ between.
        sampling: see Sampling.
        concurrency: prompts under way at a time; the server batches them.

    Raises:
        UserError: the server does not answer.
    """

    def __init__(self, url: str, sampling: Sampling, concurrency: int = 64):
        self.address, self.model = split_url(url)
        self.sampling = sampling
        self.concurrency = concurrency
        self.session = requests.Session()
        key = os.environ.get("OPENAI_API_KEY")
        if key:
            self.session.headers["Authorization"] = f"Bearer {key}"
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=RETRIES, pool_maxsize=concurrency))
        try:
            requests.get(f"{self.address}/v1/models", headers=self.session.headers, timeout=TIMEOUT).close()
        except requests.RequestException as error:
            raise UserError(
                f"no server at {self.address}: {one_line(origin(error))[:200]}; start it, or mend TEACHER"
            ) from error

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """Complete all prompts; yields each as its answer comes."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            under_way: set[Future[Completion | Failure]] = set()
            exhausted = False
            while under_way or not exhausted:
                while not exhausted and len(under_way) < self.concurrency:
                    prompt = next(prompts, None)
                    if prompt is None:
                        exhausted = True
                    else:
                        under_way.add(pool.submit(self.ask, prompt))
                if under_way:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()

    def ask(self, prompt: Prompt) -> Completion | Failure:
        """One completion; what still fails after the retries is a Failure with the server's words."""
        body = {
            "model": self.model,
            "prompt": prompt.text,
            "max_tokens": self.sampling.num_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "seed": prompt.seed % 2**31,  # llama.cpp takes no more
        }
        if self.sampling.stop:
            body["stop"] = list(self.sampling.stop)
        try:
            answer = self.session.post(f"{self.address}/v1/completions", json=body, timeout=TIMEOUT)
            if answer.status_code != 200:
                return Failure(prompt, f"the server answered {answer.status_code}: {one_line(answer.text)[:200]}")
            content = answer.json()
            text = content["choices"][0]["text"]
            if not isinstance(text, str):
                raise TypeError(f"of a text that is {text!r}")
        except requests.RequestException as error:
            return Failure(prompt, f"the server did not answer: {one_line(origin(error))[:200]}")
        except (ValueError, LookupError, TypeError) as error:
            return Failure(
                prompt, f"the server's answer is no completion: {type(error).__name__} {one_line(error)[:200]}"
            )
        for stop in self.sampling.stop:  # some servers, transformers' for one, leave it and what follows in the text
            text = text.partition(stop)[0]
        usage = content.get("usage") or {}
        return Completion(prompt, text, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))


def origin(error: BaseException) -> BaseException:
    """What began it (connection refused, name not known): the libraries above wrap it three times."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def split_url(url: str) -> tuple[str, str]:
    """(http://host:port, model) of http://host:port/model or http://host:port/v1/model."""
    parts = urllib.parse.urlsplit(url)
    model = urllib.parse.unquote(parts.path).strip("/").removeprefix("v1/")
    if "@" in parts.netloc:
        raise UserError(
            "a server's address is written to manifests: leave name and key out, set OPENAI_API_KEY instead"
        )
    if not parts.netloc or not model or model == "v1":
        raise UserError(f"{url!r}: http://host:port/model was expected, with the model's name as the server knows it")
    return f"{parts.scheme}://{parts.netloc}", model
