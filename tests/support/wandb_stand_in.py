"""A stand-in for wandb's server: the part of its protocol with which `wandb` 0.31 creates runs and sends them."""

import gzip
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Serves on a free port within its context.

    Attributes:
        runs: maps project/run -> name of a streamed file -> its lines. The history is in `wandb-history.jsonl`.
        files: the names of the uploaded files.
        asked: the number of requests.
    """

    def __enter__(self) -> "WandbServer":
        self.runs: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        self.files: set[str] = set()
        self.asked = 0
        own = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                own.asked += 1
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                reply = json.dumps(own.reply(self.path, body)).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reply(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/graphql":
            asked = json.loads(body)
            return {"data": self.query(asked.get("operationName"), asked.get("variables") or {})}
        parts = path.strip("/").split("/")
        if parts[0] == "upload":
            self.files.add("/".join(parts[1:]))
        if parts[-1] == "file_stream":
            for name, chunk in json.loads(body).get("files", {}).items():
                read = json.loads if name.endswith(".jsonl") else str
                self.runs[f"{parts[-3]}/{parts[-2]}"][name] += map(read, chunk["content"])
        return {}

    def query(self, operation: str | None, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "someone"}}
            bucket = {"id": "1", "name": variables["name"], "displayName": variables["displayName"], "project": project}
            bucket |= {"description": "", "config": "{}", "sweepName": "", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}
