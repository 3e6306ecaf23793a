"""What a teacher's server may send: each answer becomes a text or a failure of its own record, and no more."""

import contextlib
import gzip
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from support.enhancing import prompts
from support.failed_records import failures_of, last_error
from support.files import read_lines
from support.programs import STAGES, only_error, warm_python

from teacherlm.enhance.engines import openai_engine

KEY = "sk-not-for-others-0123"
GOOD = b'{"choices": [{"text": " Because."}]}'


def text(value: object, **more: object) -> bytes:
    return json.dumps({"choices": [{"text": value}], **more}).encode()


BAD = {
    "usage with nulls": (text("a", usage={"prompt_tokens": None}), "its usage is {'prompt_tokens': None}"),
    "usage that is a text": (text("a", usage="many"), "its usage is 'many'"),
    "usage that is a list": (text("a", usage=[1, 2]), "its usage is [1, 2]"),
    "usage with texts": (text("a", usage={"completion_tokens": "7"}), "completion_tokens must be a number"),
    "usage below zero": (text("a", usage={"completion_tokens": -1}), "completion_tokens must be a number"),
    "usage with true": (text("a", usage={"prompt_tokens": True}), "prompt_tokens must be a number"),
    "usage beyond all": (text("a", usage={"prompt_tokens": 10**4000}), "prompt_tokens must be a number"),
    "usage that is infinite": (b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": 1e999}}', "must be a number"),
    "a lone surrogate": (text("a \ud800 b"), "its text has a lone surrogate"),
    "100,000 brackets": (b"[" * 100_000, "RecursionError"),
    "100,000 objects": (b'{"a":' * 100_000, "RecursionError"),
    "a number of 5,000 digits": (b"1" * 5000, "the server's answer is no completion: ValueError"),
    "nothing": (b"", "the server's answer is no completion: JSONDecodeError"),
    "no JSON": (b"\xff\xfe\x00", "the server's answer is no completion"),
    "null": (b"null", "no choices[0].text: null"),
    "a list": (b"[]", "no choices[0].text: []"),
    "choices that are a text": (b'{"choices": "text"}', "no choices[0].text"),
    "no choices": (b'{"choices": []}', "no choices[0].text"),
    "a choice that is a number": (b'{"choices": [3]}', 'no choices[0].text: {"choices": [3]}'),
    "a text that is null": (text(None), "its text is None"),
    "a text that is a list": (text(["a"]), "its text is ['a']"),
    "a huge body": (text("a" * (openai_engine.LARGEST + 1)), "has more than 4194304 bytes"),
    "terminal escapes": ('{"choices": "\x7f \x9b31m"}'.encode(), r'{"choices": "\x7f \x9b31m"}'),
}


class Hostile(http.server.ThreadingHTTPServer):
    """A server that answers each prompt with `respond(handler, number of the prompt)`."""

    daemon_threads = True

    def __init__(self, respond: Callable[["Handler", int], None]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond, self.count, self.lock = respond, 0, threading.Lock()
        self.asked = threading.Event()
        self.headers: list[dict[str, str]] = []
        self.first: Callable[[Handler], None] = lambda handler: handler.answer(b"{}")  # of the request without a prompt
        self.url = f"http://127.0.0.1:{self.server_port}/model"

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no error of the test."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.server.first(self)

    def do_POST(self) -> None:
        self.server.headers.append(dict(self.headers))
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            number, self.server.count = self.server.count, self.server.count + 1
        self.server.asked.set()
        self.server.respond(self, number)

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has read enough
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve(respond: Callable[[Handler, int], None]) -> Iterator[Hostile]:
    with Hostile(respond) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def good() -> Iterator[Hostile]:
    with serve(lambda handler, _: handler.answer(GOOD)) as server:
        yield server


@pytest.fixture(autouse=True)
def without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def words(url: str, folder: Path, records: int, *more: object) -> list[object]:
    path = prompts(folder / "SAMPLE.jsonl", records)
    command = ["--name", url, "--input", path, "--output", folder / "out.jsonl", "--task_type", "cot_text"]
    return [*command, "--num_tokens", 8, "--temperature", 0, "--batch_size", 1, *more]


def test_each_bad_answer_is_one_failed_record_with_its_reason(tmp_path: Path, inside: Callable) -> None:
    bodies = [body for body, _ in BAD.values()]

    def respond(handler: Handler, number: int) -> None:
        handler.answer(GOOD if number % 2 else bodies[number // 2 % len(bodies)])

    count = 2 * len(BAD)
    with serve(respond) as server:
        result = inside("enhance", *words(server.url, tmp_path, count, "--max_failures", len(BAD)))
    assert result.returncode == 0, result.stderr
    assert f"has {len(BAD)} records, {len(BAD)} failed" in result.stdout
    rows = failures_of(tmp_path / "out.jsonl")
    assert [row["record"] for row in rows] == list(range(0, count, 2))
    for row, (name, (_, reason)) in zip(rows, BAD.items(), strict=True):
        assert reason in row["reason"], name
        assert row["reason"].isprintable(), name
        assert len(row["reason"]) < 500, name


def test_bad_answers_end_a_run_with_one_line_each_time_and_the_rest_is_kept(
    tmp_path: Path, inside: Callable, good: Hostile
) -> None:
    with serve(lambda handler, number: handler.answer(BAD["usage with nulls"][0] if number == 1 else GOOD)) as server:
        command = words(server.url, tmp_path, 4)
        for _ in range(2):
            server.count = 0 if server.count == 0 else 1  # the second run asks for one record
            error = last_error(inside("enhance", *command))
            assert "1 record got no cot (--max_failures 0)" in error
            assert "line 2: the server's answer is no completion: its usage is" in error
        server.count = 2
        assert inside("enhance", *command).returncode == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 4
    assert not (tmp_path / "out.failures.jsonl").exists()


def test_null_for_no_usage_is_a_completion(tmp_path: Path, inside: Callable) -> None:
    with serve(lambda handler, _: handler.answer(text("a", usage=None))) as server:
        assert inside("enhance", *words(server.url, tmp_path, 2)).returncode == 0


def test_a_compressed_answer_that_was_not_asked_for_is_not_unpacked(tmp_path: Path, inside: Callable) -> None:
    bomb = gzip.compress(b'{"choices": [{"text": "' + b"a" * 5_000_000 + b'"}]}')
    with serve(lambda handler, _: handler.answer(bomb, Content_Encoding="gzip")) as server:
        error = last_error(inside("enhance", *words(server.url, tmp_path, 1)))
    assert "the server's answer is compressed, although that was not requested" in error


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_answer_that_comes_byte_by_byte_is_given_up(
    part: str, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_engine, "WHOLE_ANSWER", 1)
    gone = threading.Event()

    def respond(handler: Handler, _: int) -> None:
        if part == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        with contextlib.suppress(OSError):
            while not gone.wait(0.05):
                handler.wfile.write(b"H")

    with serve(respond) as server:
        began = time.monotonic()
        error = last_error(inside("enhance", *words(server.url, tmp_path, 1)))
        gone.set()
    assert "the server did not answer within 1 seconds" in error
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("sent", [b"HTTP/1.1 100 Continue\r\n\r\n", b"H"], ids=["100 Continue", "a letter"])
def test_a_first_answer_that_never_comes_is_given_up(
    sent: bytes, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library has no timeout for what precedes an answer."""
    monkeypatch.setattr(openai_engine, "FIRST_ANSWER", 1)
    gone = threading.Event()

    def first(handler: Handler) -> None:
        with contextlib.suppress(OSError):
            while not gone.wait(0.02):
                handler.wfile.write(sent)

    with serve(lambda handler, _: handler.answer(GOOD)) as server:
        server.first = first
        began = time.monotonic()
        error = only_error(inside("enhance", *words(server.url, tmp_path, 1)))
        gone.set()
    assert f"the server at {server.url.removesuffix('/model')} did not answer within 1 seconds" in error
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("form", ["seconds", "date", "digits"])
def test_a_server_that_asks_to_wait_for_days_is_asked_again_soon(
    form: str, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_engine, "LONGEST_WAIT", 0.05)
    asked = {"seconds": "864000", "date": formatdate(time.time() + 864000, usegmt=True), "digits": "9" * 5000}[form]

    def respond(handler: Handler, number: int) -> None:
        handler.answer(b"busy", 429, Retry_After=asked) if number < 3 else handler.answer(GOOD)

    with serve(respond) as server:
        result = inside("enhance", *words(server.url, tmp_path, 2))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("(Retry-After); requests are repeated every 0.05 seconds, at most 8 times") == 1
    assert ("asks to wait 86" in result.stdout) == (form != "digits")


def test_a_server_that_stays_busy_is_a_failure_that_says_so(
    tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_engine, "LONGEST_WAIT", 0.01)
    with serve(lambda handler, _: handler.answer(b"busy", 503, Retry_After="864000")) as server:
        error = last_error(inside("enhance", *words(server.url, tmp_path, 1)))
        assert server.count == 1 + openai_engine.RETRIES
    assert "the server answered 503: busy (it asks to wait 864000 seconds)" in error


@pytest.mark.parametrize("kind", ["it asks to wait", "it says nothing"])
def test_sigterm_ends_the_waiting_for_a_server_within_seconds(kind: str, tmp_path: Path) -> None:
    over = threading.Event()

    def respond(handler: Handler, _: int) -> None:
        if kind == "it asks to wait":
            handler.answer(b"busy", 429, Retry_After="864000")
        else:
            over.wait(60)

    with serve(respond) as server:
        command = [warm_python(), STAGES["enhance"], *words(server.url, tmp_path, 3)]
        run = subprocess.Popen(list(map(str, command)), stdout=-1, stderr=-1, text=True)
        assert server.asked.wait(60)
        began = time.monotonic()
        run.send_signal(signal.SIGTERM)
        output, errors = run.communicate(timeout=60)
        over.set()
    assert run.returncode == 75, errors
    assert time.monotonic() - began < 10
    assert "interrupted after 0 of 3 completions; the same command goes on from there" in output


# ----------------------------------------------------------------------------------------- where the key and prompts go


def test_netrc_does_not_take_the_place_of_the_key(
    good: Hostile, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert inside("enhance", *words(good.url, tmp_path, 2)).returncode == 0
    assert {headers.get("Authorization") for headers in good.headers} == {f"Bearer {KEY}"}
    monkeypatch.delenv("OPENAI_API_KEY")
    good.headers.clear()
    assert inside("enhance", *words(good.url, tmp_path, 2), "--restart", "--seed", 1).returncode == 0
    assert {headers.get("Authorization") for headers in good.headers} == {None}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_prompts_are_not_sent_on_to_another_place(
    status: int, good: Hostile, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda handler, _: handler.answer(b"", status, Location=f"{good.url}\x1b[2J")) as server:
        error = last_error(inside("enhance", *words(server.url, tmp_path, 1)))
    assert rf"the server redirects to {good.url}\x1b[2J; prompts are not sent there" in error
    assert good.headers == []


def test_a_server_that_sends_elsewhere_at_once_is_refused(
    good: Hostile, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.answer(b"", 302, Location="http://elsewhere/"))
    error = last_error(inside("enhance", *words(good.url, tmp_path, 1)))
    assert "redirects to http://elsewhere/; prompts and key are not sent there" in error


@pytest.mark.parametrize("proxied", [True, False], ids=["https", "http"])
def test_a_proxy_is_used_for_https_only(
    proxied: bool, good: Hostile, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str | None]] = []

    def connect(handler: Handler) -> None:
        seen.append((handler.path, handler.headers.get("Authorization")))
        handler.answer(b"", 403)

    monkeypatch.setattr(Handler, "do_CONNECT", connect, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(lambda handler, _: handler.answer(GOOD)) as proxy:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://somebody:proxy-password@127.0.0.1:{proxy.server_port}")
        monkeypatch.setenv("no_proxy", "")
        url = "https://teacher.invalid/model" if proxied else good.url
        result = inside("enhance", *words(url, tmp_path, 1))
        headers = list(proxy.headers)
    assert headers == []
    if proxied:
        assert set(seen) == {("teacher.invalid:443", None)}
        assert "no server at https://teacher.invalid: Tunnel connection failed: 403" in result.stderr
        assert "proxy-password" not in result.stderr + result.stdout
    else:
        assert result.returncode == 0
        assert seen == []


def test_a_key_that_the_server_repeats_is_not_written_down(
    tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(
        lambda handler, _: handler.answer(f"bad key {handler.headers['Authorization']}".encode(), 401)
    ) as server:
        result = inside("enhance", *words(server.url, tmp_path, 2))
    assert "the server answered 401: bad key Bearer [hidden]" in last_error(result)
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()
    assert KEY not in result.stdout + result.stderr


@pytest.mark.parametrize("key", ["two words", "umlaut-ä", "line\nbreak"])
def test_a_key_that_is_none_is_one_line(
    key: str, good: Hostile, tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert "OPENAI_API_KEY: it has a space" in only_error(inside("enhance", *words(good.url, tmp_path, 1)))


def test_a_key_does_not_cross_the_network_unencrypted(
    tmp_path: Path, inside: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    command = words("http://192.0.2.1:8000/model", tmp_path, 1)
    before = set(tmp_path.iterdir())
    error = only_error(inside("enhance", *command))
    assert "OPENAI_API_KEY would go to 192.0.2.1 unencrypted (http://)" in error
    assert set(tmp_path.iterdir()) == before
    monkeypatch.setattr(openai_engine, "TIMEOUT", (0.2, 0.2))
    monkeypatch.setenv("TEACHERLM_KEY_OVER_HTTP", "1")
    assert "no server at http://192.0.2.1:8000" in last_error(inside("enhance", *command))


SECRETS = [
    f"http://h:1/m?api_key={KEY}",
    f"https://h/v1/m#{KEY}",
    f"http://somebody:{KEY}@h:1/m",
    f"HTTP://{KEY}@h:1/m",
    f"http://h:1/m?{KEY}",
]


@pytest.mark.parametrize("address", SECRETS)
def test_an_address_with_a_secret_is_refused_before_anything_is_written(
    address: str, tmp_path: Path, inside: Callable
) -> None:
    command = words(address, tmp_path, 1)
    before = set(tmp_path.iterdir())
    result = inside("enhance", *command)
    assert "the server's address (h) contains a user's name, a password or a setting" in only_error(result)
    assert KEY not in result.stdout + result.stderr
    assert set(tmp_path.iterdir()) == before


def test_the_chain_refuses_it_too(tmp_path: Path) -> None:
    environment = {**os.environ, "RUNS": str(tmp_path / "runs"), "LAUNCHER": "local", "PYTHON": sys.executable}
    chain = ["bash", str(STAGES["enhance"].parent.parent / "slurm" / "chain.sh"), "sample"]
    for address in SECRETS[:3]:
        done = subprocess.run(chain, env=environment | {"TEACHER": address}, capture_output=True, text=True)
        assert done.returncode == 2
        assert "the server's address (h) contains a user's name, a password or a setting" in done.stderr
        assert KEY not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "address", ["http://h:1", "http://h:1/v1/", "http:///m", "http://h:port/m", "http://h:99999/m", "http://h/a/../m"]
)
def test_an_address_that_is_none_is_one_line(address: str, tmp_path: Path, inside: Callable) -> None:
    assert "http://host:port/model was expected" in only_error(inside("enhance", *words(address, tmp_path, 1)))
