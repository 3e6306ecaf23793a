"""enhance.py with a teacher behind a server: a real one (`transformers serve`) that dies, and one that watches."""

import http.server
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.chat_models import TEMPLATES, with_template
from support.enhancing import progress_of, prompts
from support.failed_records import failures_of, last_error
from support.files import read_lines
from support.programs import ROOT, only_error, warm_python
from support.transformers_server import Server

from teacherlm.core import manifests
from teacherlm.runtime.launcher import free_port

SETTINGS = ["--num_tokens", 24, "--temperature", 0, "--dtype", "float32", "--batch_size", 2]


@pytest.fixture(scope="module")
def server(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It serves a copy of `tiny_llama` that has a chat template."""
    folder = tmp_path_factory.mktemp("server")
    server = Server(with_template(tiny_llama, folder / "tiny", TEMPLATES["with BOS"]), folder / "log.txt")
    server.start()
    server.wait()
    yield server
    server.kill()


def command(url: str, records: Path, output: Path, *more: object) -> list[str]:
    script = ["bash", ROOT / "enhance" / "enhance.sh"]
    return list(map(str, [*script, url, records, output, "cot_text", *SETTINGS, *more]))


def enhance(url: str, records: Path, output: Path, *more: object, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": warm_python(), **environment}
    return subprocess.run(command(url, records, output, *more), capture_output=True, text=True, env=environment)


def own_texts(teacher: Path, records: Path, output: Path, inside: Callable, *more: object) -> bytes:
    """The texts of the transformers engine for the same prompts."""
    words = ["--name", teacher, "--input", records, "--output", output, "--task_type", "cot_text", *SETTINGS, *more]
    assert inside("enhance", *words).returncode == 0
    return output.read_bytes()


@pytest.mark.parametrize("more", [[], ["--stop", "a"]], ids=["whole", "with a stop text"])
def test_a_server_s_texts_are_those_of_the_same_teacher_here(
    server: Server, tiny_llama: Path, tmp_path: Path, inside: Callable, more: list[object]
) -> None:
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 15), tmp_path / "SAMPLE_cot.jsonl"
    result = enhance(server.url, records, output, *more)
    assert result.returncode == 0, result.stderr
    assert output.read_bytes() == own_texts(tiny_llama, records, tmp_path / "own.jsonl", inside, *more)
    counts, own = (
        manifests.read_manifest(manifests.manifest_of(tmp_path / name))["counts"]
        for name in ("SAMPLE_cot.jsonl", "own.jsonl")
    )
    assert counts["prompt_tokens"] == own["prompt_tokens"]
    assert counts["new_tokens"] == own["new_tokens"]


def test_a_chat_server_s_texts_are_those_of_the_same_teacher_here(
    server: Server, tmp_path: Path, inside: Callable
) -> None:
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 15), tmp_path / "SAMPLE_cot.jsonl"
    result = enhance(server.url, records, output, "--chat", "true")
    assert result.returncode == 0, result.stderr
    assert output.read_bytes() == own_texts(server.teacher, records, tmp_path / "own.jsonl", inside)
    assert output.read_bytes() != own_texts(
        server.teacher, records, tmp_path / "plain.jsonl", inside, "--chat", "false"
    )
    made, own = (
        manifests.read_manifest(manifests.manifest_of(tmp_path / name)) for name in ("SAMPLE_cot.jsonl", "own.jsonl")
    )
    for name in ("prompt_tokens", "new_tokens", "ended"):
        assert made["counts"][name] == own["counts"][name]
    assert made["arguments"]["chat"] is own["arguments"]["chat"] is True


def test_a_server_that_dies_and_comes_back_loses_nothing(
    server: Server, tiny_llama: Path, tmp_path: Path, inside: Callable
) -> None:
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 40), tmp_path / "SAMPLE_cot.jsonl"
    progress = progress_of(output)
    environment = {**os.environ, "PYTHON": warm_python()}
    run = subprocess.Popen(
        command(server.url, records, output), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while run.poll() is None and not (progress.exists() and progress.read_bytes().count(b"\n") > 5):
        time.sleep(0.01)
    server.kill()
    time.sleep(0.5)
    assert run.poll() is None
    assert progress.read_bytes().count(b"\n") < 40
    server.start()
    _, errors = run.communicate(timeout=180)
    assert run.returncode == 0, errors
    assert output.read_bytes() == own_texts(tiny_llama, records, tmp_path / "own.jsonl", inside)


def test_a_model_that_the_server_does_not_have_fails_with_the_server_s_words(server: Server, tmp_path: Path) -> None:
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 5), tmp_path / "SAMPLE_cot.jsonl"
    error = last_error(enhance(f"{server.address}/other", records, output))
    words = (
        f"the server answered 400: {{\"detail\":\"Server is pinned to '{server.teacher.name}'; requested 'other'.\"}}"
    )
    assert f"5 records got no cot (--max_failures 0), the first in {records}, line 1: {words};" in error
    assert [row["reason"] for row in failures_of(output)] == [words] * 5
    assert not output.exists()


def test_no_server_is_one_line(tmp_path: Path) -> None:
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 5), tmp_path / "SAMPLE_cot.jsonl"
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    error = only_error(enhance(f"{url}/tiny", records, output))
    assert f"no server at {url}: [Errno 111] Connection refused; start it" in error
    assert not output.exists()


# ----------------------------------------------------------------------------------------------- a server that watches


class Watcher(http.server.ThreadingHTTPServer):
    """Answers every prompt with a text, and records the headers and the number of prompts at a time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.refused = ""  # a part of the prompts that get no answer
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/model"


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.answer(200, {"data": []})

    def do_POST(self) -> None:
        self.server.headers.append(dict(self.headers))
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
        time.sleep(0.05)
        with self.server.lock:
            self.server.now -= 1
        refused = self.server.refused and self.server.refused in prompt
        self.answer(
            *((400, {"error": "no"}) if refused else (200, {"choices": [{"text": f" {len(prompt)} letters."}]}))
        )

    def answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    with Watcher() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_key_is_sent_and_appears_nowhere_else(watcher: Watcher, tmp_path: Path) -> None:
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 5), tmp_path / "SAMPLE_cot.jsonl"
    watcher.refused = read_lines(records)[2]["text"]
    key = "sk-3a9f-not-for-others"
    results = [enhance(watcher.url, records, output, *more, OPENAI_API_KEY=key) for more in ([], ["--max_failures", 1])]
    assert [result.returncode for result in results] == [2, 0]
    assert {headers.get("Authorization") for headers in watcher.headers} == {f"Bearer {key}"}
    assert len(failures_of(output)) == 1
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    for text in [*written, *(result.stdout + result.stderr for result in results)]:
        assert key not in text


def test_no_more_than_batch_size_prompts_are_under_way(watcher: Watcher, tmp_path: Path) -> None:
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 12), tmp_path / "SAMPLE_cot.jsonl"
    result = enhance(watcher.url, records, output, "--batch_size", 3)
    assert result.returncode == 0, result.stderr
    assert watcher.most == 3
    assert [record["cot"] for record in read_lines(output)] == [
        f" {len(record['cot_text'])} letters." for record in read_lines(records)
    ]


def test_a_record_that_gets_its_text_later_takes_its_place_in_the_merged_file_too(
    watcher: Watcher, tmp_path: Path, inside: Callable
) -> None:
    records, output = prompts(tmp_path / "SAMPLE.jsonl", 6), tmp_path / "SAMPLE_cot.jsonl"
    flags = ["--name", watcher.url, "--input", records, "--output", output, "--task_type", "cot_text", *SETTINGS]
    flags += ["--max_failures", 1]
    merge = ["--input", records, "--output", output, "--shards", 2]
    watcher.refused = read_lines(records)[3]["text"]
    for expected in (5, 6):
        for shard in ("0/2", "1/2"):
            result = inside("enhance", *flags, "--shard", shard)
            assert result.returncode == 0, result.stderr
        assert f"has {expected} records of 2 shards" in inside("merge", *merge).stdout
        watcher.refused = ""
    assert [record["text"] for record in read_lines(output)] == [record["text"] for record in read_lines(records)]
    assert "done already" in inside("merge", *merge).stdout
