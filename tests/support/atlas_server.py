"""A server of published files."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 20_000


class Server(ThreadingHTTPServer):
    """Serves one content under every name. `cut` ends one connection after this number of bytes.

    `wrong` gets the status, headers and body of an answer with a part of the file, and returns wrong ones.
    """

    content, cut, etag, digest, wrong, length = CONTENT, None, True, None, None, True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str | None]] = []

    def body(self, path: str) -> bytes:
        """The bytes that are served under a name."""
        return self.content


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        if self.path.endswith(".sha256"):
            if self.server.digest is None:
                self.send_error(404)
                return
            body = f"{self.server.digest}  model.pth.tar\n".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        body = self.server.body(self.path)
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        start = 0
        known = self.headers.get("If-Range") in (etag, "Tue, 01 Mar 2022 10:00:00 GMT")
        if known and (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(found.group(1))
        headers = {"ETag": etag} if self.server.etag else {"Last-Modified": "Tue, 01 Mar 2022 10:00:00 GMT"}
        status, rest = 200, body
        if start:
            status, rest = 206, body[start:]
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            if self.server.wrong:
                status, rest = self.server.wrong(status, headers, rest)
        self.send_response(status)
        length = {"Content-Length": str(len(rest))} if self.server.length else {}
        for name, value in (length | headers).items():
            self.send_header(name, value)
        self.end_headers()
        cut, self.server.cut = self.server.cut, None
        self.wfile.write(rest[:cut])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
