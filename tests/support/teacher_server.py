"""A stand-in for a teacher's server, which a test tells how to answer. It records what it was asked, and when."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

Respond = Callable[["Answer", dict[str, Any]], None]


class TeacherServer(http.server.ThreadingHTTPServer):
    """A server that answers each request with `respond(answer, body of the request)`.

    Attributes:
        asked: (seconds, path, body, headers) of each request for a text, in the order of their arrival.
    """

    daemon_threads = True

    def __init__(self, respond: Respond, port: int = 0, answer: "type[Answer] | None" = None):
        super().__init__(("127.0.0.1", port), answer or Answer)
        self.respond, self.lock = respond, threading.Lock()
        self.asked: list[tuple[float, str, dict[str, Any], dict[str, str]]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no error of the test."""


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send({"data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((time.monotonic(), self.path, body, dict(self.headers)))
        self.server.respond(self, body)

    def send(self, content: Any, status: int = 200, length: int | None = None, **headers: str) -> None:
        """Send JSON. With `length`, the announced length is another than that of the content."""
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(length or len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
        self.close_connection = length is not None

    def say(self, text: str | None, finish: str | None = "stop", usage: Any = None, **message: Any) -> None:
        """Send an answer in a chat."""
        choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        self.send({"choices": [choice], "usage": usage})

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve(respond: Respond) -> Iterator[TeacherServer]:
    with TeacherServer(respond) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def usage(prompt: int, new: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
