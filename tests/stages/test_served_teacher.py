"""--engine serve: a server that enhance.py starts with the command of the teacher's YAML, and ends."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.enhancing import prompts
from support.files import read_lines
from support.programs import ROOT, STAGES, only_error, warm_python

from teacherlm.enhance.engines.server_process import name_of

RECORDS = 30
STAND_IN = f"{shlex.quote(sys.executable)} -P -m support.served_stand_in --port {{port}}"
WORDS = ["--name", "served", "--input", "SAMPLE.jsonl", "--output", "out.jsonl", "--task_type", "cot_text"]


@pytest.fixture
def place(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with records and a folder models/."""
    prompts(tmp_path / "SAMPLE.jsonl", RECORDS)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'tests'}")
    return tmp_path


def describe(place: Path, teacher: Path, serve: str) -> None:
    (place / "models" / "served.yaml").write_text(f"path: {teacher}\nserve: {json.dumps(serve)}\n")


def start(*more: object) -> subprocess.Popen:
    words = [warm_python(), STAGES["enhance"], *WORDS, "--engine", "serve", "--batch_size", 4, *more]
    return subprocess.Popen(list(map(str, words)), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def enhance(*more: object) -> subprocess.CompletedProcess:
    started = start(*more)
    output, errors = started.communicate(timeout=60)
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


def log() -> list[str]:
    return Path("out.server.log").read_text().splitlines()


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def await_that(holds: Callable[[], Any]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def manifest() -> dict[str, Any]:
    return json.loads(Path("out.manifest.json").read_text())


def test_a_real_server_writes_what_the_teacher_here_writes(tiny_llama: Path, place: Path, inside: Callable) -> None:
    """`transformers serve` of the same folder, greedy."""
    greedy = ["--num_tokens", 12, "--temperature", 0, "--dtype", "float32"]
    serve = f"{shlex.quote(warm_python())} -m transformers.cli.transformers serve {{folder}} --host 127.0.0.1"
    describe(place, tiny_llama, serve + " --port {port} --device cpu --dtype float32")
    result = enhance(*greedy)
    assert result.returncode == 0, result.stderr
    own = ["--name", tiny_llama, "--input", "SAMPLE.jsonl", "--output", "own.jsonl", "--task_type", "cot_text"]
    assert inside("enhance", *own, *greedy).returncode == 0
    assert Path("out.jsonl").read_bytes() == Path("own.jsonl").read_bytes()
    assert manifest()["arguments"]["engine"] == "serve" and "{port}" in manifest()["arguments"]["serve"]
    assert manifest()["inputs"]["teacher"]["path"] == str(tiny_llama)
    assert "done already, nothing to do" in enhance(*greedy).stdout
    assert "done already, nothing to do" in inside("enhance", *WORDS, "--engine", "auto", *greedy).stdout


def test_auto_never_runs_the_command(tiny_llama: Path, place: Path, inside: Callable) -> None:
    describe(place, tiny_llama, f"touch trace {{port}}; {STAND_IN} --texts 12")
    auto = [*WORDS, "--engine", "auto", "--num_tokens", 4, "--dtype", "float32"]
    assert inside("enhance", *auto).returncode == 0
    assert manifest()["counts"]["engine"] == "transformers"
    for path in Path().glob("out.*"):
        path.unlink()
    describe(place, tiny_llama, f"{STAND_IN} --texts 0")
    assert enhance("--num_tokens", 4, "--dtype", "float32").returncode == 2
    Path(".out.jsonl.progress").write_text(
        Path(".out.jsonl.progress").read_text() + '{"key": 0, "text": "a", "tokens": 1, "prompt": "b"}\n'
    )
    assert "was begun with --engine serve, which runs a command" in only_error(inside("enhance", *auto))
    assert not Path("trace").exists()


def test_another_command_is_another_setting(tiny_llama: Path, place: Path) -> None:
    describe(place, tiny_llama, STAND_IN)
    assert enhance().returncode == 0
    assert len(read_lines(Path("out.jsonl"))) == RECORDS
    describe(place, tiny_llama, f"{STAND_IN} --loads 0.5")
    assert "serve was" in only_error(enhance())
    assert enhance("--restart").returncode == 0


def test_a_server_that_is_killed_is_started_again_and_nothing_is_lost(tiny_llama: Path, place: Path) -> None:
    describe(place, tiny_llama, f"{STAND_IN} --texts 12")
    result = enhance()
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("was ended by SIGKILL") == 2  # 30 records, and 12 texts a start
    assert result.stdout.count("is started again") == 2
    made = read_lines(Path("out.jsonl"))
    assert [record["cot"] for record in made] == [f" A text of {len(record['cot_text'])}." for record in made]
    assert len(made) == RECORDS and not Path("out.failures.jsonl").exists()


def test_a_server_that_makes_no_text_ends_the_command_and_keeps_what_was_made(tiny_llama: Path, place: Path) -> None:
    describe(place, tiny_llama, f"{STAND_IN} --texts 0")
    result = enhance()
    error = result.stderr.splitlines()[-1]  # after the lines of progress
    assert result.returncode == 2 and "was ended by SIGKILL" in error and "made no text since its start" in error
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("serve", "expected"),
    [
        (f"{STAND_IN} --fails 'no memory on the device'", "ended with status 3; the last line of its log: no memory"),
        ("no-such-server --port {port}", "the server no-such-server cannot be started ([Errno 2] No such file"),
        (f"$NO_SUCH_VARIABLE/{STAND_IN}", "set NO_SUCH_VARIABLE in the environment"),
        (f"{STAND_IN} {{file}}", "there is no {file}: its weights are not a file of a package"),
    ],
)
def test_a_server_that_cannot_start_is_one_line(serve: str, expected: str, tiny_llama: Path, place: Path) -> None:
    describe(place, tiny_llama, serve)
    assert expected in only_error(enhance())
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize("serve", ["vllm serve {folder}", "vllm serve {model} --port {port}", "serve '{port}"])
def test_a_malformed_command_is_refused_where_the_yaml_is_read(serve: str, tiny_llama: Path, place: Path) -> None:
    describe(place, tiny_llama, serve)
    assert "models/served.yaml: serve: a command with {port}" in only_error(enhance())


def test_serve_needs_a_command(tiny_llama: Path, place: Path) -> None:
    (place / "models" / "served.yaml").write_text(f"path: {tiny_llama}\n")
    assert "--engine serve: served has no `serve` in a models/served.yaml" in only_error(enhance())


@pytest.mark.parametrize(("number", "more"), [(signal.SIGTERM, "--stubborn"), (signal.SIGINT, "")])
def test_at_a_signal_the_server_ends_with_its_children_and_the_work_goes_on_later(
    number: int, more: str, tiny_llama: Path, place: Path
) -> None:
    describe(place, tiny_llama, f"{STAND_IN} --loads 1000 {more}")
    started = start()
    await_that(lambda: Path("out.server.log").is_file() and any("serving" in line for line in log()))
    processes = [int(line.split()[-1]) for line in log()]
    started.send_signal(number)
    started.communicate(timeout=100)
    assert started.returncode == (75 if number == signal.SIGTERM else 130)
    await_that(lambda: not any(is_there(process) for process in processes))  # of the children, none waits
    describe(place, tiny_llama, STAND_IN)
    assert enhance("--restart").returncode == 0


def test_the_server_ends_if_the_command_is_killed(tiny_llama: Path, place: Path) -> None:
    describe(place, tiny_llama, f"{STAND_IN} --loads 1000")
    words = [sys.executable, STAGES["enhance"], *WORDS, "--engine", "serve"]
    started = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL)
    await_that(lambda: Path("out.server.log").is_file() and log())
    server = int(log()[0].split()[-1])
    started.kill()
    started.wait()
    await_that(lambda: not is_there(server))


def test_weights_that_only_the_server_reads(tiny_llama: Path, place: Path) -> None:
    """A folder with a GGUF file and no config.json. Its digest belongs to the settings."""
    weights = place / "weights"
    weights.mkdir()
    (weights / "model.gguf").write_bytes(b"GGUF")
    describe(place, weights, f"{STAND_IN} --texts 1000")
    assert enhance().returncode == 0
    digest = manifest()["inputs"]["teacher"]["sha256"]
    (weights / "model.gguf").write_bytes(b"GGUF, another one")
    assert "out.jsonl is there already" in only_error(enhance())
    assert enhance("--restart").returncode == 0
    assert manifest()["inputs"]["teacher"]["sha256"] != digest
    words = ["--name", "served", "--input", "SAMPLE.jsonl", "--output", "other.jsonl", "--task_type", "cot_text"]
    result = subprocess.run(list(map(str, [warm_python(), STAGES["enhance"], *words])), capture_output=True, text=True)
    assert "only a server reads" in only_error(result)


def test_a_signal_without_a_name_is_a_number() -> None:
    assert [name_of(number) for number in (9, 15, 40)] == ["SIGKILL", "SIGTERM", "signal 40"]
