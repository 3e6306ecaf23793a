"""The answers of a teacher's server (status line, headers, body) on persistent connections, which enhance.py reads."""

import gzip
import json
import os
import random
import re
import socketserver
import sys
import threading
from pathlib import Path

from support.fuzz.harness import Subject
from support.fuzz.mutation import VALUES, Files, encoded, mutate_bytes, mutate_json

from teacherlm.core.errors import UserError
from teacherlm.core.records import read_records
from teacherlm.enhance import main as enhance
from teacherlm.enhance.engines import openai_engine as engine

COUNT = 4
TEXTS = [f" Because of reason {number}. So the answer is (A)." for number in range(COUNT)]
MESSAGE = {"role": "assistant", "refusal": None, "reasoning_content": "The claim is about reasons."}
BODIES = [
    {
        "id": "cmpl-1",
        "choices": [
            {
                "text": text,
                "message": MESSAGE | {"content": text},
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
    }
    | {"object": "text_completion", "usage": {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}}
    for text in TEXTS
]
USAGES = [
    "null",
    "[]",
    '"7"',
    '{"prompt_tokens": null}',
    '{"completion_tokens": "9"}',
    '{"prompt_tokens": [1]}',
    "true",
]
USAGES += ['{"prompt_tokens": -5}', '{"prompt_tokens": 1e400}', '{"completion_tokens": ' + "9" * 5000 + "}"]
HEADS = [
    b"HTTP/1.1 500 No",
    b"HTTP/1.1 429 Slow\r\nRetry-After: 864000",
    b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/",
]
HEADS += [
    b"HTTP/1.1 301 Moved\r\nLocation: file:///etc/passwd",
    b"HTTP/1.1 503 No\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT",
]
HEADS += [
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: br",
    b"HTTP/1.1 200 OK\r\nX: \x1b[2J",
]
HEADS += [
    b"HTTP/1.1 400 No",
    b"HTTP/1.1 204 Empty",
    b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
    b"HTTP/9.9 999 X",
]
HEADS += [
    b"HTTP/1.1 429 Slow\r\nRetry-After: -1",
    b"HTTP/1.1 429 Slow\r\nRetry-After: soon",
    b"HTTP/1.1 401 \x1b]0;title\x07",
]
HEADS += [b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-7", b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b"]
HEADS += [b"HTTP/1.1 200 OK" + b"\r\nX: y" * 200, b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, b"", b"SSH-2.0-OpenSSH_9"]


def example(folder: Path) -> None:
    (folder / "answers").mkdir()
    for number, body in enumerate(BODIES):
        (folder / "answers" / f"{number}.http").write_bytes(answer(b"HTTP/1.1 200 OK", json.dumps(body).encode()))
    records = ({"text": f"Claim {n}.", "cot_text": f"Claim {n}. Let's think step by step."} for n in range(COUNT))
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def answer(head: bytes, body: bytes) -> bytes:
    return b"%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (head, len(body), body)


def damage(files: Files, draw: random.Random) -> Files:
    """Damage one answer or all answers: the body (with a correct length), its usage, headers, encoding or raw bytes."""
    numbers = range(COUNT) if draw.random() < 0.1 else [draw.randrange(COUNT)]
    action = draw.choice(["body", "body", "body", "text", "usage", "head", "head", "bytes", "bomb"])
    for number in numbers:
        body = json.dumps(BODIES[number]).encode()
        head = b"HTTP/1.1 200 OK"
        if action == "body":
            body = mutate_json(body, draw)
        elif action == "text":
            body = body.replace(json.dumps(TEXTS[number]).encode(), encoded(draw.choice(VALUES)))
        elif action == "usage":
            body = re.sub(
                rb'"usage": \{.*?\}', encoded('"usage": ' + draw.choice(USAGES)).replace(b"\\", b"\\\\"), body
            )
        elif action == "head":
            head = draw.choice(HEADS)
        elif action == "bomb":
            head += b"\r\nContent-Encoding: gzip"
            bomb = draw.choice(
                [b" " * 2**24 + body, b"[" * 2**20, body[:-1] + b" " * 2**24, body.replace(b"Because", b"B" * 2**22)]
            )
            body = gzip.compress(bomb)
        raw = answer(head, body)
        files[f"answers/{number}.http"] = mutate_bytes(raw, draw) if action == "bytes" else raw
    return files


class Teacher(socketserver.ThreadingTCPServer):
    """Sends the bytes of the answer to each prompt unchanged. After a damaged answer it closes the connection."""

    allow_reuse_address = daemon_threads = True
    answers: Files

    def handle_error(self, *_: object) -> None:
        """Ignore that the other side has closed the connection."""


class Connection(socketserver.StreamRequestHandler):
    timeout = 20

    def handle(self) -> None:
        while line := self.rfile.readline():
            headers = dict(iter(lambda: tuple(self.rfile.readline().lower().strip().partition(b": ")[::2]), (b"", b"")))
            asked = self.rfile.read(int(headers.get(b"content-length", 0)))
            if line.startswith(b"GET"):
                self.wfile.write(answer(b"HTTP/1.1 200 OK", b'{"data": []}'))
                continue
            number = int(re.search(rb"Claim (\d+)", asked)[1])
            raw = self.server.answers[number]
            self.wfile.write(raw)
            if raw != good(number):
                return


def good(number: int) -> bytes:
    return answer(b"HTTP/1.1 200 OK", json.dumps(BODIES[number]).encode())


SERVERS: dict[int, Teacher] = {}
"""Maps each process to its server."""


def teacher() -> Teacher:
    if os.getpid() not in SERVERS:
        SERVERS[os.getpid()] = Teacher(("127.0.0.1", 0), Connection)
        threading.Thread(target=SERVERS[os.getpid()].serve_forever, daemon=True).start()
    return SERVERS[os.getpid()]


def read(place: Path) -> None:
    """Check that failures are reported, and that the same command with a good server then makes all texts."""
    engine.LONGEST_WAIT = 0  # between two tries
    server = teacher()
    server.answers = [(place / "answers" / f"{number}.http").read_bytes() for number in range(COUNT)]
    mistake = None
    try:
        ask(place, server)
    except UserError as error:
        mistake = error
        server.answers = [good(number) for number in range(COUNT)]
        ask(place, server)
    made = [record["cot"] for _, record in read_records(place / "output" / "X_cot.jsonl")]
    assert len(made) == COUNT and all(isinstance(text, str) for text in made)
    if mistake:
        raise mistake


def ask(place: Path, server: Teacher) -> None:
    sys.argv = ["enhance.py", "--name", f"http://127.0.0.1:{server.server_address[1]}/model", "--task_type", "cot_text"]
    sys.argv += ["--input", str(place / "records.jsonl"), "--output", str(place / "output" / "X_cot.jsonl")]
    size = sum(file.stat().st_size for file in (place / "answers").iterdir())
    sys.argv += ["--batch_size", "3", "--temperature", "0", "--chat", "true" if size % 2 else "false"]
    enhance.main()


SUBJECT = Subject("server_answers", example, read, damage, at_once=4)
