"""Tasks side by side on the devices of this machine; processes on the CPU stand in for GPUs."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import read_lines
from support.programs import ROOT, warm_python

from teacherlm.chain import local
from teacherlm.chain.graph import Graph, Stage
from teacherlm.chain.layout import RunFolder
from teacherlm.runtime.launcher import Command, run_side_by_side

SPAN = """
import json, os, sys, time
began = time.time()
with open(sys.argv[1] + ".begun", "a") as file:
    file.write(".")
while os.path.getsize(sys.argv[1] + ".begun") < int(sys.argv[5]) and time.time() < began + 60:
    time.sleep(0.01)
time.sleep(float(sys.argv[2]))
with open(sys.argv[1], "a") as file:
    file.write(json.dumps([began, time.time(), os.environ.get("CUDA_VISIBLE_DEVICES"), sys.argv[3]]) + "\\n")
sys.exit(int(sys.argv[4]))
"""
"""A program that waits until a given number of processes have begun, and records its time and its devices."""


@pytest.fixture
def spans(tmp_path: Path) -> Path:
    return tmp_path / "spans.jsonl"


@pytest.fixture
def command(spans: Path) -> Callable[..., Command]:
    def make(name: object, seconds: float = 0.3, status: int = 0, begun: int = 1) -> Command:
        words = [str(spans), str(seconds), str(name), str(status), str(begun)]
        return Command([sys.executable, "-I", "-c", SPAN, *words])

    return make


def places(count: int) -> list[dict[str, str]]:
    return [{"CUDA_VISIBLE_DEVICES": str(number)} for number in range(count)]


def most_at_once(rows: list[list]) -> int:
    return max(sum(began <= at < ended for began, ended, *_ in rows) for at, *_ in rows)


def test_as_many_run_at_once_as_there_are_places(command: Callable, spans: Path) -> None:
    assert run_side_by_side([command(number, begun=2) for number in range(5)], places(2)) == 0
    rows = read_lines(spans)
    assert sorted(row[3] for row in rows) == list("01234")
    assert most_at_once(rows) == 2
    for device in "01":
        own = sorted(row[:2] for row in rows if row[2] == device)
        assert own
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(own))  # one process a device


def test_a_failure_ends_the_others_and_nothing_more_begins(command: Callable, spans: Path) -> None:
    began = time.monotonic()
    commands = [command("bad", 0.2, 7), command("long", 60), command("never")]
    assert run_side_by_side(commands, places(2)) == 7
    assert time.monotonic() - began < 30
    assert [row[3] for row in read_lines(spans)] == ["bad"]


def test_with_keep_going_all_are_done_and_the_first_bad_status_counts(command: Callable, spans: Path) -> None:
    commands = [command("a", 0.1, 7), command("b", 0.1, 9), command("c", 0.1)]
    assert run_side_by_side(commands, places(1), keep_going=True) == 7
    assert [row[3] for row in read_lines(spans)] == ["a", "b", "c"]


def test_a_process_that_a_signal_ended_has_the_status_of_a_shell() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_side_by_side([Command([sys.executable, "-I", "-c", code])]) == 137


@pytest.mark.parametrize(("number", "given"), [("SIGUSR1", "10"), ("SIGTERM", "15"), ("SIGINT", "15")])
def test_signals_reach_all_processes_and_75_stays(tmp_path: Path, number: str, given: str) -> None:
    """Each process ends where it can resume later. Ctrl-C reaches the processes as SIGTERM."""
    child = (
        "import pathlib, signal, sys, time\n"
        "def end(number, frame):\n    pathlib.Path(sys.argv[1]).write_text(str(int(number)))\n    sys.exit(75)\n"
        "for one in (signal.SIGUSR1, signal.SIGTERM): signal.signal(one, end)\n"
        "pathlib.Path(sys.argv[1] + '.ready').touch()\ntime.sleep(60)\n"
    )
    files = [tmp_path / name for name in ("a", "b", "c")]
    parent = (
        "import sys\nfrom teacherlm.runtime.launcher import *\n"
        f"words = [Command([sys.executable, '-I', '-c', {child!r}, file]) for file in sys.argv[1:]]\n"
        "sys.exit(run_side_by_side(words, [{}, {}]))\n"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", parent, *map(str, files)])
    while not all(Path(f"{file}.ready").exists() for file in files[:2]):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    assert process.wait(60) == 75
    assert [file.read_text() for file in files[:2]] == [given, given]
    assert not Path(f"{files[2]}.ready").exists()


def test_ctrl_c_goes_to_the_command_in_front_as_in_a_shell(tmp_path: Path) -> None:
    """The command decides what Ctrl-C means, and does not get a SIGTERM in addition."""
    child = (
        "import pathlib, signal, sys, time\nfile = pathlib.Path(sys.argv[1])\n"
        "signal.signal(signal.SIGTERM, lambda *_: file.write_text('terminated'))\n"
        "def end(*_):\n    time.sleep(0.5)\n    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, end)\nfile.touch()\ntime.sleep(60)\n"
    )
    parent = (
        "import sys\nfrom teacherlm.runtime.launcher import *\n"
        f"words = [Command([sys.executable, '-I', '-c', {child!r}, sys.argv[1]])]\n"
        "sys.exit(run_side_by_side(words, in_front=True))\n"
    )
    file = tmp_path / "began"
    process = subprocess.Popen([sys.executable, "-P", "-c", parent, str(file)], process_group=0)
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert file.read_text() == ""


def stage(
    command: Callable,
    name: str,
    *,
    gpus: int = 1,
    together: bool = False,
    tasks: int = 4,
    begun: int = 1,
    **more: object,
) -> Stage:
    return Stage(
        name=name,
        made=None,
        commands=lambda index, words: [command(f"{name} {index}", begun=begun)],
        work=name,
        lock=lambda index: f"{name}-{index}",
        request=lambda site: [],
        indices=range(tasks),
        array=True,
        gpus=gpus,
        together=together,
        missing=lambda: list(range(tasks)),
        **more,
    )


def graph(tmp_path: Path, *stages: Stage) -> Graph:
    runs = tmp_path / "runs"
    return Graph("sample", "run", "", runs, RunFolder(runs / "sample" / "all"), stages, lambda make: [])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def has(devices: int, visible: str = "") -> None:
        monkeypatch.setenv("NUM_GPUS", str(devices))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        local.processes_on_machine.cache_clear()

    yield has
    local.processes_on_machine.cache_clear()


@pytest.mark.parametrize(
    ("devices", "visible", "gpus", "groups"),
    [
        (0, "", 1, []),
        (1, "", 1, ["0"]),
        (4, "", 1, ["0", "1", "2", "3"]),
        (4, "", 2, ["0,1", "2,3"]),
        (5, "", 2, ["0,1", "2,3"]),
        (1, "", 2, []),
        (2, "6,7", 1, ["6", "7"]),
        (2, "6", 1, ["6", "6"]),
        (4, "", 0, []),
    ],
)
def test_each_task_gets_devices_of_its_own(
    machine: Callable, command: Callable, devices: int, visible: str, gpus: int, groups: list[str]
) -> None:
    machine(devices, visible)
    found = local.device_groups(stage(command, "enhance", gpus=gpus))
    assert [group["CUDA_VISIBLE_DEVICES"] for group in found] == groups


def test_shards_are_done_side_by_side(machine: Callable, command: Callable, spans: Path, tmp_path: Path) -> None:
    machine(2)
    assert local.run_here(graph(tmp_path, stage(command, "enhance", begun=2))) == 0
    rows = read_lines(spans)
    assert sorted(row[3] for row in rows) == [f"enhance {task}" for task in range(4)]
    assert most_at_once(rows) == 2
    assert {row[2] for row in rows} == {"0", "1"}


def test_without_devices_tasks_are_done_one_after_the_other(
    machine: Callable, command: Callable, spans: Path, tmp_path: Path
) -> None:
    machine(0)
    assert local.run_here(graph(tmp_path, stage(command, "enhance"), stage(command, "evaluate", together=True))) == 0
    rows = read_lines(spans)
    assert [row[3] for row in rows] == [*(f"enhance {task}" for task in range(4)), "evaluate None"]
    assert most_at_once(rows) == 1


def test_models_are_scored_side_by_side_and_then_shown_together(
    machine: Callable, command: Callable, spans: Path, tmp_path: Path
) -> None:
    machine(2)
    assert local.run_here(graph(tmp_path, stage(command, "evaluate", together=True, tasks=3, begun=2))) == 0
    rows = read_lines(spans)
    assert sorted(row[3] for row in rows[:-1]) == [f"evaluate {task}" for task in range(3)]
    assert rows[-1][3] == "evaluate None"
    assert most_at_once(rows[:-1]) == 2


def test_a_locked_task_waits_until_the_other_run_has_ended(
    machine: Callable, command: Callable, spans: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    machine(0)
    (locks := tmp_path / "runs" / "sample" / "all" / ".locks").mkdir(parents=True)
    holding = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(1)"
    )
    words = [sys.executable, "-I", "-c", holding, str(locks / "enhance-0")]
    other = subprocess.Popen(words, stdout=subprocess.PIPE)
    other.stdout.readline()
    began = time.time()
    assert local.run_here(graph(tmp_path, stage(command, "enhance", tasks=1))) == 0
    other.wait()
    assert "enhance: waiting for another run that is doing the same work" in capfd.readouterr().out
    assert read_lines(spans)[0][0] >= began + 0.5


def test_a_chain_on_two_devices_makes_the_explanations_and_scores_of_one(tiny_llama: Path, tmp_path: Path) -> None:
    """SHARDS is not set, so the teacher's work is split into one shard per device."""
    small = {"STUDENT": tiny_llama, "LIMIT": 8, "EPOCHS": 1, "NUM_TOKENS": 8, "BATCH": 2, "PYTHON": warm_python()}
    environment = {**os.environ, **{name: str(value) for name, value in small.items()}, "LAUNCHER": "local"}
    said = {}
    for devices in ("1", "2"):
        own = {**environment, "NUM_GPUS": devices, "RUNS": str(tmp_path / devices)}
        words = ["bash", ROOT / "slurm" / "chain.sh", "sample"]
        done = subprocess.run(words, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[devices] = done.stdout
    assert "enhance: 2 tasks, 2 at a time" in said["2"] and "evaluate: 2 tasks, 2 at a time" in said["2"]
    assert not [line for line in said["1"].splitlines() if "tasks, " in line]
    one, two = (tmp_path / devices / "sample" / "limit-8" for devices in ("1", "2"))
    for name in ("enhance/tiny_seed0/SAMPLE_cot.jsonl", "evaluate/tiny/sample_samples.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert len(list(two.glob("enhance/*/SAMPLE_cot.shard-?-of-2.jsonl"))) == 2
    assert json.loads(next(two.glob("evaluate/*/checkpoint-*/sample.json")).read_text())["n"] == 80
