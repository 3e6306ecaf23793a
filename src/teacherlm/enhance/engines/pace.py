"""How many requests and tokens a server gets in a minute."""

import threading
import time


class Pace:
    """When the next request may start. The starts are spread evenly over each minute.

    Args:
        requests_per_minute: maximum number of requests in a minute; None means no limit.
        tokens_per_minute: maximum number of tokens in a minute; None means no limit. A request counts with the tokens
            that it may need, until its answer says how many it did need.
    """

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None):
        self.seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self.seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self.next_request = self.next_tokens = self.held = 0.0
        self.lock = threading.Lock()

    def begin(self, tokens: int) -> float:
        """Begin a request that may need these tokens, and return 0; or return the seconds until one may begin."""
        with self.lock:
            now = time.monotonic()
            wait = max(self.next_request, self.next_tokens, self.held) - now
            if wait > 0:
                return wait
            self.next_request = now + self.seconds_per_request
            self.next_tokens = now + tokens * self.seconds_per_token
            return 0.0

    def begin_later(self, tokens: int, ending: threading.Event) -> bool:
        """Wait until a request may begin, and begin it. False if `ending` was set before."""
        while wait := self.begin(tokens):
            if ending.wait(wait):
                return False
        return True

    def correct(self, tokens: int, used: int) -> None:
        """Count the tokens that a request did need, in place of those that it might have needed."""
        with self.lock:
            self.next_tokens += (used - tokens) * self.seconds_per_token

    def hold(self, seconds: float) -> None:
        """Begin no request for some seconds, because the server asked to wait."""
        with self.lock:
            self.held = max(self.held, time.monotonic() + seconds)
