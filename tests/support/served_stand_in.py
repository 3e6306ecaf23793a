"""A server that enhance.py starts: python -P -m support.served_stand_in --port PORT [--texts N] [--loads SECONDS]

It asks for the key that its environment has, and ends with a SIGKILL after N texts, as if the system had no memory.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from support.teacher_server import Answer, TeacherServer


class Served(Answer):
    def is_allowed(self) -> bool:
        allowed = self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"
        if not allowed:
            self.send({"error": "the key is wrong"}, 401)
        return allowed

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send({}, 200 if time.monotonic() >= self.server.ready_at else 503)
        elif self.is_allowed():
            self.send({"data": [{"id": name} for name in self.server.names]})

    def do_POST(self) -> None:
        if self.is_allowed():
            super().do_POST()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--texts", type=int, default=10**9)
    parser.add_argument("--loads", type=float, default=0)
    parser.add_argument("--names", default="served")
    parser.add_argument("--stubborn", action="store_true", help="do not end at a SIGTERM, and have a child")
    parser.add_argument("--fails", help="print this and end")
    args = parser.parse_args()
    if args.fails is not None:
        print(args.fails)
        sys.exit(3)
    if args.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("child", subprocess.Popen(["sleep", "1000"]).pid, flush=True)
    lock, made = threading.Lock(), [0]

    def respond(answer: Answer, body: dict[str, Any]) -> None:
        with lock:
            made[0] += 1
            if made[0] > args.texts:
                os.kill(os.getpid(), signal.SIGKILL)
        assert body.get("model", args.names) in args.names.split(",")
        answer.send({"choices": [{"text": f" A text of {len(body['prompt'])}.", "finish_reason": "stop"}]})

    server = TeacherServer(respond, args.port, Served)
    server.ready_at, server.names = time.monotonic() + args.loads, args.names.split(",")
    print("serving", os.getpid(), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
