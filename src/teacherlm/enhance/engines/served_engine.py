"""A teacher behind a server that this command starts with the teacher's `serve` command, and ends.

vLLM and llama.cpp can both be such servers. If the server ends while it works, it is started again, as long as it made
a text since its last start. The prompts that it had are asked again, so nothing is lost.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from teacherlm.core import interrupts
from teacherlm.core.errors import UserError
from teacherlm.core.terminal import plural
from teacherlm.enhance.engines.openai_engine import CONCURRENCY, OpenAIEngine
from teacherlm.enhance.engines.server_process import HOST, ServerProcess
from teacherlm.runtime.generation import Completion, Failure, Prompt, Sampling
from teacherlm.runtime.launcher import free_port


class ServedEngine:
    """The server is started before the first prompt.

    Args:
        words: makes the words of the server's command for a port.
        name: the teacher's name.
        log: the file for what the server prints. Each start begins it anew.
        sampling: how the next token is chosen.
        concurrency: maximum number of requests at a time; None means the default.
    """

    def __init__(
        self, words: Callable[[int], list[str]], name: str, log: Path, sampling: Sampling, concurrency: int | None
    ):
        self.words, self.name, self.log, self.sampling = words, name, log, sampling
        self.concurrency = concurrency or CONCURRENCY
        self.server: ServerProcess | None = None
        self.engine: OpenAIEngine | None = None
        self.texts = 0  # since the last start

    def start(self) -> bool:
        """Start the server. False if a signal asked to stop before it was ready.

        Raises:
            UserError: it ended before it was ready.
        """
        self.close()
        self.texts = 0
        port = free_port(HOST)
        self.server = ServerProcess(self.words(port), port, self.log)
        print(f"enhance: starting the server {self.server.words[0]}; it writes to {self.log}", flush=True)
        if not self.server.await_ready():
            return False
        self.engine = OpenAIEngine(
            f"{self.server.address}/v1",
            self.sampling,
            self.concurrency,
            self.name,
            sends_model=self.name in self.server.models,
            key=self.server.key,
            is_alive=lambda: self.server is not None and not self.server.has_ended(),
        )
        return True

    def complete(self, prompts: Iterator[Prompt]) -> Iterator[Completion | Failure]:
        """Complete all prompts. Each completion is yielded as soon as it comes.

        Raises:
            UserError: the server ended, and made no text since its last start.
        """
        lost: deque[Prompt] = deque()
        while True:
            first = lost.popleft() if lost else next(prompts, None)
            if first is None or not (self.engine is not None or self.start()):
                return
            assert self.engine is not None and self.server is not None
            begun = [first, *lost]
            lost.clear()
            for result in self.engine.complete(itertools.chain(begun, prompts)):
                if isinstance(result, Failure) and self.server.has_ended():
                    lost.append(result.prompt)
                else:
                    self.texts += isinstance(result, Completion)
                    yield result
            if not self.server.has_ended() or interrupts.is_asked():
                return
            how = self.server.how_it_ended()
            self.engine = None
            if not self.texts:
                raise UserError(f"the server {self.server.words[0]} {how}; it made no text since its start")
            print(f"enhance: the server {how}; it made {plural(self.texts, 'text')} and is started again", flush=True)

    def close(self) -> None:
        """End the server."""
        if self.server is not None:
            self.server.end()
        self.server = self.engine = None
