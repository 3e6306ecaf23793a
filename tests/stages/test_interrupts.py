"""Finetuning that is killed or asked to stop, at any moment, ends as if it had not been."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.finetuning import flags, read_log, weights
from support.programs import ROOT, warm_python

SERVER = """
import json, os, sys
from teacherlm.core.programs import run
from teacherlm.finetune import arguments, checkpoints, interrupts, main, samples, student, trainer, watching  # once
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
for line in sys.stdin:
    child = os.fork()
    if not child:
        sys.argv = json.loads(line)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        run(main.main)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Forks:
    """A process that has the libraries loaded and does each run in a fork: starting takes no time."""

    def __enter__(self) -> "Forks":
        self.process = subprocess.Popen([warm_python(), "-c", SERVER], stdin=-1, stdout=-1, text=True)
        return self

    def start(self, words: list[object]) -> int:
        """Start a run, and return its process id. The process may have ended already; call `result` for its result."""
        self.process.stdin.write(json.dumps(["finetune.py", *map(str, words)]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def result(self) -> int:
        return int(self.process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def uninterrupted(forks: Forks, tiny_llama: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    forks.start(flags(tiny_llama, prepared / "SAMPLE", folder))
    assert forks.result() == 0
    return folder


@pytest.mark.parametrize("times", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    times: int, forks: Forks, uninterrupted: Path, tiny_llama: Path, prepared: Path, tmp_path: Path
) -> None:
    """Each kill comes shortly after a random line of the log: while loading, in a step, or in a checkpoint."""
    run, log = tmp_path / "run", tmp_path / "run" / "log.jsonl"
    words = flags(tiny_llama, prepared / "SAMPLE", run)
    draws = random.Random(0)
    killed = 0
    lines_at_kills = set()
    while killed < times:
        line, pause = lines_of(log) + draws.randrange(3), draws.uniform(0, 0.02)
        child = forks.start(words)
        while lines_of(log) < line and Path(f"/proc/{child}").exists():
            time.sleep(0.001)
        time.sleep(pause)
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.kill(child, signal.SIGKILL)
        killed += forks.result() == -signal.SIGKILL
        lines_at_kills.add(lines_of(log))
        if (run / "manifest.json").exists():  # begin again
            done = run.rename(tmp_path / f"done-{len(list(tmp_path.iterdir()))}")
            assert (read_log(done), weights(done)) == (read_log(uninterrupted), weights(uninterrupted))
    forks.start(words)
    assert forks.result() == 0
    assert len(lines_at_kills) > 1
    assert (read_log(run), weights(run)) == (read_log(uninterrupted), weights(uninterrupted))


def lines_of(log: Path) -> int:
    return len(log.read_bytes().splitlines()) if log.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals,
    forks: Forks,
    uninterrupted: Path,
    tiny_llama: Path,
    prepared: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    words = [*flags(tiny_llama, prepared / "SAMPLE", folder), "--logging_steps", 4]
    child = forks.start(words)
    while not (folder / "log.jsonl").exists() or '"step": 8' not in (folder / "log.jsonl").read_text():
        time.sleep(0.001)
    os.kill(child, number)
    assert forks.result() == 75
    (marker,) = folder.glob("checkpoint-*/interrupted")
    assert not (folder / "manifest.json").exists()
    forks.start(words)
    assert forks.result() == 0
    assert not marker.parent.exists()
    assert read_log(folder) == read_log(uninterrupted)
    assert weights(folder) == weights(uninterrupted)


def test_the_script_hands_the_signal_on(tiny_llama: Path, prepared: Path, tmp_path: Path) -> None:
    positional = [tiny_llama, prepared / "SAMPLE", 2, 1, 1e-3, 500, "cot_text", "run", tmp_path, "test"]
    command = ["bash", ROOT / "finetune" / "finetune.sh", *positional, "--deepspeed", "none"]
    environment = {**os.environ, "PYTHON": warm_python(), "NUM_GPUS": "2"}
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    while not log.exists() or not log.stat().st_size:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "a checkpoint was saved, and the same command resumes from it" in output
    assert list((tmp_path / "run").glob("checkpoint-*/interrupted"))
