"""make status, make logs and make cancel: what they print for a chain's list of jobs, states and logs."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import ROOT, only_error, program, warm_python
from support.slurm_stand_in import queue, slurm_path

Steer = Callable[..., subprocess.CompletedProcess]
NAME = "tiny_cot_tail_tiny_seed0"


@pytest.fixture
def steer(tmp_path: Path) -> Steer:
    """Run the command as make does, in the folder above runs/, with a squeue that prints the given queue."""

    def run(command: str, squeue: str = "exit 0", **variables: str) -> subprocess.CompletedProcess:
        path = slurm_path(tmp_path / "bin", squeue=squeue, scancel=f"echo $* >>{tmp_path}/cancelled")
        words = [warm_python(), *program("steer")[:-1], "--called", f"make {command}", "steer", command]
        environment = {**os.environ, "PATH": path, **variables}
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    return make_chain(tmp_path / "runs/sample/all/chains" / NAME)


def make_chain(folder: Path, *rows: str) -> Path:
    for name in ("states", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    submit(folder, *(rows or ("prepare 1 0", "enhance 2 0-3", "merge 3 0", "report 4 0")))
    return folder


def submit(folder: Path, *rows: str) -> None:
    with open(folder / "jobs.tsv", "a") as file:
        for row in rows:
            stage, job, tasks = row.split()
            log = f"{folder}/logs/{stage}{'-%a' if stage in ('enhance', 'evaluate') else ''}.log"
            work = f"{stage}-{NAME}" if stage == "evaluate" else f"{stage}-tiny_seed0"
            file.write("\t".join((stage, job, tasks, "-", work, log)) + "\n")


def note(folder: Path, task: str, state: str, job: int) -> None:
    (folder / "states" / task).write_text(f"{state}\t{job}\tnode1\t1795286496\n")


def rows(done: subprocess.CompletedProcess) -> dict[str, list[str]]:
    assert done.returncode == 0, done.stderr
    lines = [line.strip("|").split("|") for line in done.stdout.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[2:]}


def test_a_cancelled_chain_says_so_and_has_no_failure(steer: Steer, chain: Path) -> None:
    note(chain, "prepare-0", "done", 1)
    note(chain, "enhance-0", "done", 2)
    note(chain, "enhance-1", "cancelled", 2)
    (chain / "logs" / "enhance-1.log").write_text("slurmstepd: error: *** JOB 2 CANCELLED\n")
    done = steer("status")
    found = rows(done)
    assert found["prepare"][:2] == ["1", "done"]
    assert found["enhance"][:2] == ["2", "1 done, 1 cancelled, 2 cancelled before it began"]
    assert found["merge"][:2] == ["3", "cancelled before it began"]
    assert "CANCELLED" not in done.stdout


def test_a_chain_that_goes_on_with_the_work_of_another_run_is_as_it_is_now(steer: Steer, chain: Path) -> None:
    """It was cancelled while enhance ran, and another chain did enhance and merge. SHARDS was 4 and is 2."""
    note(chain, "prepare-0", "done", 1)
    note(chain, "enhance-0", "cancelled", 2)
    submit(chain, "enhance - 0-1", "merge - 0", "report 9 0")
    note(chain, "report-0", "done", 9)
    found = rows(steer("status"))
    assert {stage: cells[:2] for stage, cells in found.items()} == {
        "prepare": ["1", "done"],
        "enhance": ["-", "2 done already"],
        "merge": ["-", "done already"],
        "report": ["9", "done"],
    }
    (chain / "logs" / "enhance-0.log").write_text("text 7\n")
    (chain / "logs" / "prepare.log").touch()
    logs = steer("logs").stdout.splitlines()
    assert [line.rpartition("/")[2] if line.startswith("==") else line for line in logs] == [
        "prepare.log",
        "(the file is empty)",
        "enhance-0.log",
        "text 7",
        "report.log",
        "(there is no such file: the task did not begin)",
    ]


def test_the_newest_submission_alone_has_a_number_and_a_failure(steer: Steer, chain: Path) -> None:
    for task in range(4):
        note(chain, f"enhance-{task}", "failed with 2" if task == 1 else "done", 2)
    submit(chain, "enhance - 0,2-3", "enhance 7 1", "merge 8 0", "report 9 0")
    waiting = steer("status", queue("7|1|RUNNING|None", "8|N/A|PENDING|Dependency", "9|N/A|PENDING|None"))
    found = rows(waiting)
    assert found["enhance"][:2] == ["7", "3 done already, 1 RUNNING"]
    assert found["merge"][:2] == ["8", "PENDING (Dependency)"]
    assert found["report"][:2] == ["9", "PENDING"]  # the scheduler has not looked at it yet
    assert "failed" not in waiting.stdout


def test_scored_checkpoints_are_counted_of_all(steer: Steer, chain: Path) -> None:
    submit(chain, "evaluate 5 0-2")
    run = chain.parent.parent
    assert rows(steer("status"))["evaluate"][2] == ""
    for number in (3, 6):
        (run / "finetune" / NAME / f"checkpoint-{number}").mkdir(parents=True)
    scores = run / "evaluate" / NAME / "checkpoint-3"
    scores.mkdir(parents=True)
    (scores / "sample.manifest.json").write_text(json.dumps({"stage": "evaluate", "outputs": {}}))
    assert rows(steer("status"))["evaluate"][2] == "1 of 2 checkpoints scored"


def test_texts_are_those_of_the_newest_work(steer: Steer, chain: Path) -> None:
    """A first run with SHARDS=4 left a shard and a progress file; then the output was made of two shards."""
    made = chain.parent.parent / "enhance" / "tiny_seed0"
    made.mkdir(parents=True)

    def write(name: str, records: int, at: int) -> None:
        counts = {"stage": "enhance", "outputs": {}, "counts": {"records": records, "shards": 2}}
        text = "\n" * (records + 1) if name.endswith(".progress") else json.dumps(counts)
        (made / name).write_text(text)
        os.utime(made / name, (at, at))

    write("SAMPLE_cot.shard-0-of-4.manifest.json", 2, 100)
    write(".SAMPLE_cot.shard-1-of-4.jsonl.progress", 1, 100)
    assert rows(steer("status"))["enhance"][2] == "3 texts"
    for shard in ("0-of-2", "1-of-2"):
        write(f"SAMPLE_cot.shard-{shard}.manifest.json", 4, 200)
    write("SAMPLE_cot.manifest.json", 8, 300)
    assert rows(steer("status"))["enhance"][2] == "8 texts"
    write(".SAMPLE_cot.shard-0-of-2.jsonl.progress", 1, 400)  # the work is done again
    assert rows(steer("status"))["enhance"][2] == "1 text"


def test_two_chains_of_one_name_are_told_apart(steer: Steer, tmp_path: Path) -> None:
    chains = [make_chain(tmp_path / f"runs/sample/limit-{limit}/chains" / NAME, f"merge {limit} 0") for limit in (4, 5)]
    waiting = queue("4|N/A|PENDING|None", "5|N/A|PENDING|None", logs=[f"{n} {c}/logs/x" for n, c in zip("45", chains)])
    error = only_error(steer("cancel", waiting))
    assert error == (
        "make cancel: error: several chains are under way; choose one with CHAIN=..., a part of its path: "
        f"sample/limit-4/chains/{NAME}, sample/limit-5/chains/{NAME}"
    )
    done = steer("cancel", waiting, CHAIN="limit-5")
    assert done.stdout == f"runs/sample/limit-5/chains/{NAME}: cancelled jobs 5\n"
    assert (tmp_path / "cancelled").read_text() == "5\n"


def test_a_job_whose_stage_was_found_done_since_is_cancelled_too(steer: Steer, chain: Path, tmp_path: Path) -> None:
    submit(chain, "merge - 0")
    done = steer("cancel", queue("3|N/A|PENDING|None", logs=[f"3 {chain}/logs/merge.log"]))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cancelled").read_text() == "3\n"


@pytest.mark.parametrize("target", ["status", "logs", "cancel"])
def test_messages_have_the_name_that_was_typed(target: str) -> None:
    """The rest of the line in the Makefile is run by the other tests."""
    makefile = (ROOT / "Makefile").read_text()
    assert f'teacherlm --called "make {target}" steer {target}\n' in makefile
