"""A stand-in for the Hugging Face hub on 127.0.0.1, which serves a folder of repositories to huggingface_hub.

    root/models/OWNER/NAME/config.json      root/datasets/OWNER/NAME/train.json

The requests are those of huggingface_hub 2.4 and datasets 5.2: about a repository (`/api/models/O/N/revision/main`),
its tree, some of its paths, and a file's bytes (`/O/N/resolve/REVISION/FILE`). What is unknown gets the hub's own 404.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = ("models", "datasets")


class Hub(ThreadingHTTPServer):
    """Serves `root`. `requests` holds the received requests in the form "GET /api/..."."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.root = root
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()

    def fetched(self) -> list[str]:
        """The names of the files whose bytes were requested."""
        return sorted(Path(line).name for line in self.requests if line.startswith("GET ") and "/resolve/" in line)


@contextmanager
def serve_hub(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stop()
        thread.join()


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts[0] in KINDS else "models"
        repository = self.server.root.joinpath(kind, *parts[:2])
        if len(parts) < 2 or not repository.is_dir():
            self.refuse("RepoNotFound")
        elif api:
            self.answer_about(repository, "/".join(parts[:2]), parts[2:], body)
        elif parts[2:3] == ["resolve"]:
            self.send_file(repository, repository.joinpath(*parts[4:]))
        else:
            self.refuse("EntryNotFound")

    def answer_about(self, repository: Path, name: str, asked: list[str], body: str) -> None:
        match asked:
            case [] | ["revision", _]:
                siblings = [{"rfilename": entry["path"]} for entry in tree(repository) if entry["type"] == "file"]
                self.send_json({"id": name, "sha": commit(repository), "siblings": siblings})
            case ["tree", _, *below]:
                folder = repository.joinpath(*below)
                recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
                if folder.is_dir():
                    found = (repository / entry["path"] for entry in tree(repository))
                    inside = [path for path in found if path.parent == folder or (recursive and folder in path.parents)]
                    self.send_json([describe(repository, path) for path in inside])
                else:
                    self.refuse("EntryNotFound")
            case ["paths-info", _]:
                paths = [repository / path for path in parse_qs(body).get("paths", [])]
                self.send_json([describe(repository, path) for path in paths if path.exists()])
            case _:
                self.refuse("EntryNotFound")

    def send_file(self, repository: Path, file: Path) -> None:
        if not file.is_file():
            self.refuse("EntryNotFound", commit(repository))
            return
        content = file.read_bytes()
        headers = {"X-Repo-Commit": commit(repository), "ETag": f'"{blob(file)}"'}
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(206 if "Range" in self.headers else 200, content[int(start) :], headers)

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str, sha: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": sha} if sha else {})
        self.send(404, json.dumps({"error": code}).encode(), headers)

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing. If requests matter, pytest shows `requests`."""


def tree(repository: Path) -> list[dict[str, Any]]:
    return [describe(repository, path) for path in sorted(repository.rglob("*"))]


def describe(repository: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()}
    return {"type": "file", "path": name, "oid": blob(path), "size": path.stat().st_size}


def blob(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def commit(repository: Path) -> str:
    """The commit of a repository. It changes only when a file changes."""
    files = (path for path in sorted(repository.rglob("*")) if path.is_file())
    return hashlib.sha1("".join(f"{path.name} {blob(path)}\n" for path in files).encode()).hexdigest()
