"""`transformers serve`, as a teacher's server."""

import subprocess
import time
from pathlib import Path

import pytest
import requests

from support.programs import warm_python
from support.warm_python import kill
from teacherlm.runtime.launcher import free_port


class Server:
    """`transformers serve` of one model's folder."""

    def __init__(self, teacher: Path, log: Path):
        self.teacher, self.log, self.port = teacher, log, free_port("127.0.0.1")
        self.address = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.address}/{teacher.name}"

    def start(self) -> None:
        command = [warm_python(), "-m", "transformers.cli.transformers", "serve", self.teacher.name]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu", "--dtype", "float32"]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.teacher.parent, stdout=log, stderr=log)

    def wait(self) -> None:
        """Wait until the server answers."""
        until = time.monotonic() + 120
        while time.monotonic() < until and self.process.poll() is None:
            try:
                return requests.get(f"{self.address}/health", timeout=10).raise_for_status()
            except requests.ConnectionError:
                time.sleep(0.2)
        pytest.fail(self.log.read_text())

    def kill(self) -> None:
        kill(self.process)
