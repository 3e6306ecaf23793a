"""What a submission prints and lists, with programs in the place of Slurm's; and the scripts of its jobs."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.programs import ROOT, only_error, program, warm_python
from support.slurm_stand_in import accepting, slurm_path

from teacherlm.chain import slurm
from teacherlm.chain.graph import Graph, Stage
from teacherlm.chain.layout import RunFolder
from teacherlm.chain.site import Site

CHAIN = ["bash", str(ROOT / "slurm" / "chain.sh")]
SINFO = "echo 'main*|gpu:2(S:0)|2|4000|1:00:00|3'"
Chain = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submission")


@pytest.fixture(scope="module")
def chain(tiny_llama: Path, place: Path) -> Chain:
    small = {"STUDENT": tiny_llama, "TEACHER": tiny_llama, "LIMIT": 8, "EPOCHS": 1, "NUM_TOKENS": 8, "BATCH": 4}

    def run(launcher: str, scripts: dict[str, str] | None = None, **variables: object) -> subprocess.CompletedProcess:
        own = {"PATH": slurm_path(place / "bin", **{**accepting(place), **(scripts or {})}), "LAUNCHER": launcher}
        own |= {"PYTHON": warm_python(), "SITE": "", "RUNS": place / "runs"}
        environment = {**os.environ, **{name: str(value) for name, value in {**small, **own, **variables}.items()}}
        return subprocess.run([*CHAIN, "sample"], cwd=place, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def cancelled(chain: Chain, place: Path) -> Path:
    """The folder of a chain that was submitted with SHARDS=4 and cancelled while enhance ran."""
    done = chain("slurm", SHARDS=4)
    assert done.returncode == 0, done.stderr
    (folder,) = place.glob("runs/sample/limit-8/chains/*")
    for task, state in (("prepare-0", "done"), ("enhance-0", "cancelled"), ("enhance-1", "failed with 2")):
        (folder / "states" / task).write_text(f"{state}\t{1 if task == 'prepare-0' else 2}\tnode1\t1\n")
    return folder


@pytest.fixture(scope="module")
def finished(chain: Chain, cancelled: Path) -> Path:
    """The same chain, after a run on this machine did its work."""
    done = chain("local")
    assert done.returncode == 0, done.stderr
    return cancelled


def listed(folder: Path) -> list[tuple[str, ...]]:
    return [tuple(line.split("\t")[:3]) for line in (folder / "jobs.tsv").read_text().splitlines()]


def status(place: Path) -> str:
    environment = {**os.environ, "PATH": f"{place}/bin:{os.environ['PATH']}"}
    command = [warm_python(), *program("steer"), "status"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_cancelled_shards_left_is_not_missing(finished: Path, inside: Callable) -> None:
    """The output was made since then, with another number of shards."""
    run = finished.parent.parent
    (whole,) = run.glob("enhance/*/SAMPLE_cot.manifest.json")
    left = whole.with_name(".SAMPLE_cot.shard-1-of-4.jsonl.progress")
    left.write_text("{}\n")
    try:
        assert "missing" in inside("report", run).stdout
        os.utime(left, (1, 1))
        assert "missing" not in inside("report", run).stdout
    finally:
        left.unlink()
        inside("report", run)


def page(folder: Path) -> str:
    return (folder.parent.parent / "report" / "index.html").read_text()


def test_work_of_a_run_on_this_machine_outranks_what_jobs_said(finished: Path, place: Path) -> None:
    assert [row for row in listed(finished) if row[1] == "-"] == [
        ("enhance", "-", "0"),
        ("merge", "-", "0"),
        ("finetune", "-", "0"),
        ("evaluate", "-", "0-1"),
        ("report", "-", "0"),
    ]
    shown = status(place)
    assert "done already" in shown
    assert not [word for word in ("failed", "cancelled", "PENDING") if word in shown]


def test_a_finished_chain_is_not_submitted_again_and_says_why(finished: Path, chain: Chain, place: Path) -> None:
    """Nor is its page out of date, which the work of finetuning and scoring had changed."""
    submitted, before = (place / "submitted").read_text(), (finished / "jobs.tsv").read_text()
    done = chain("slurm")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        *(f"{stage}: done already" for stage in ("prepare", "enhance", "merge", "finetune", "evaluate", "report")),
        "nothing to submit: all stages are done",
    ]
    assert (place / "submitted").read_text() == submitted
    assert (finished / "jobs.tsv").read_text() == before
    assert "failed with 2" not in page(finished)


def test_a_page_that_is_gone_is_a_job_alone(finished: Path, chain: Chain) -> None:
    run = finished.parent.parent
    (run / "report" / "manifest.json").rename(run / "manifest.kept")
    try:
        done = chain("slurm", DRY_RUN=1)
        assert [line.split("slurm/job.sh ")[1].split()[0] for line in done.stdout.splitlines() if "sbatch" in line] == [
            "report"
        ]
        assert "evaluate: done already" in done.stdout
    finally:
        (run / "manifest.kept").rename(run / "report" / "manifest.json")


def test_a_failure_of_the_newest_submission_is_on_the_page(finished: Path, inside: Callable) -> None:
    with open(finished / "jobs.tsv", "a") as file:
        file.write(f"merge\t99\t0\t-\tw\t{finished}/logs/merge.log\n")
    (finished / "states" / "merge-0").write_text("cancelled\t99\tnode1\t1\n")
    made = inside("report", finished.parent.parent)
    assert made.returncode == 0, made.stderr
    assert "; 1 thing is missing, see its first section" in made.stdout
    assert f"merge: task 0 of {finished.name} was cancelled" in page(finished)


def made_up(tmp_path: Path, missing: dict[str, list[int]]) -> Graph:
    """A chain whose stages say which of their tasks are missing. Like an experiment of ATLAS, it prints its scores."""

    def stage(name: str, tasks: int = 1, **more: object) -> Stage:
        return Stage(
            name=name,
            made=None,
            commands=lambda index, words: [],
            work=name,
            lock=lambda index: name,
            request=lambda site: [],
            indices=range(tasks),
            array=tasks > 1,
            missing=None if more else lambda: missing.get(name, []),
            **more,
        )

    runs = tmp_path / "runs"
    stages = (stage("prepare"), stage("enhance", 4), stage("score", always=True), stage("report"))
    return Graph("sample", "run", "", runs, RunFolder(runs / "sample" / "all"), stages, lambda make: [])


@pytest.mark.parametrize(
    ("missing", "rows"),
    [
        ({}, []),
        ({"enhance": [1]}, ["prepare - 0", "enhance - 0,2-3", "enhance 1 1", "score 2 0", "report 3 0"]),
        ({"report": [0]}, ["prepare - 0", "enhance - 0-3", "score 1 0", "report 2 0"]),
    ],
)
def test_what_is_done_is_listed_beside_what_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: dict[str, list[int]], rows: list[str]
) -> None:
    """A stage that only prints is submitted with another one, and is no reason to submit."""
    monkeypatch.setenv("PATH", slurm_path(tmp_path / "bin", **accepting(tmp_path)))
    monkeypatch.setattr(sys, "argv", ["chain.sh"])
    graph = made_up(tmp_path, missing)
    assert slurm.submit(graph, Site(), False) == 0
    list_of_jobs = graph.chain.jobs
    assert ([" ".join(row) for row in listed(list_of_jobs.parent)] if list_of_jobs.exists() else []) == rows


def test_jobs_of_other_chains_are_named_as_such(chain: Chain, place: Path) -> None:
    runs = place / "two"
    assert chain("slurm", RUNS=runs).returncode == 0
    (first,) = runs.glob("sample/limit-8/chains/*")
    waiting = "\n".join(row[1] for row in listed(first))
    done = chain("slurm", {"squeue": f"[[ $* != *--format=%F* ]] || echo '{waiting}'"}, RUNS=runs, TASK="all")
    assert done.returncode == 0, done.stderr
    enhance = next(line for line in done.stdout.splitlines() if line.startswith("enhance "))
    prepare, of_enhance, merge = (row[1] for row in listed(first)[:3])
    own = listed(next(one for one in runs.glob("sample/limit-8/chains/*") if one != first))[0][1]
    assert f"  {own} + {of_enhance} {merge} of other chains  " in enhance
    assert prepare not in enhance.split("+")[1]


def test_a_refusal_names_all_that_is_too_much_and_where_to_change_it(chain: Chain, place: Path) -> None:
    site = place / "site.env"
    site.write_text("EVALUATE_ARGS=(--time=10 --mem=1500M --cpus-per-task=1)\n")
    scripts = {"sbatch": "echo 'sbatch: error: no' >&2; exit 1", "sinfo": SINFO}
    refused = chain("slurm", scripts, SITE=site, RUNS=place / "refused")
    assert refused.returncode == 2
    *notes, error = refused.stderr.splitlines()
    assert f"change the request in {site} (SBATCH_ARGS, CPU_ARGS, ENHANCE_ARGS, FINETUNE_ARGS, EVALUATE_ARGS" in error
    begins = "chain.sh: note: {} requests more than its partition has: {}"
    assert begins.format("prepare", "--mem=4G (at most 4000M)") not in notes
    assert any(note.startswith(begins.format("prepare", "--time=04:00:00 (at most 1:00:00)")) for note in notes)
    [enhance] = [note for note in notes if " enhance requests" in note]
    assert "--cpus-per-task=8 (at most 2)" in enhance
    assert "; SBATCH_ARGS=(--" in enhance and f" --cpus-per-task=2) in {site} changes that" in enhance
    assert any(note.startswith("chain.sh: the command was: sbatch --parsable") for note in notes)
    assert not any(" evaluate requests" in note for note in notes)
    planned = chain("slurm", scripts, SITE=site, RUNS=place / "refused", DRY_RUN=1)
    assert planned.returncode == 0
    assert [note for note in notes if "requests" in note] == [
        note for note in planned.stderr.splitlines() if "requests" in note
    ]


def test_a_job_that_is_cancelled_notes_it(tmp_path: Path) -> None:
    """scancel sends SIGTERM to the job's script and to its stage, which here waits for a lock."""
    runs = tmp_path / "runs"
    locks = runs / "sample" / "limit-4" / ".locks"
    locks.mkdir(parents=True)
    settings = tmp_path / "settings-1.json"
    words = {"benchmark": "sample", "directory": str(tmp_path), "variables": {"LIMIT": "4", "RUNS": str(runs)}}
    settings.write_text(json.dumps(words))
    settings.chmod(0o600)
    command = ["bash", ROOT / "slurm" / "job.sh", "prepare", ROOT, settings, "-", sys.executable, "-"]
    slurm = {"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_NODELIST": "n"}
    with open(locks / "prepare", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        log = open(tmp_path / "log", "w")
        job = subprocess.Popen(command, env={**os.environ, **slurm, "SITE": ""}, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while "waiting for another run" not in (tmp_path / "log").read_text():
            assert job.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 143
    assert (tmp_path / "states" / "prepare-0").read_text().split("\t")[:2] == ["cancelled", "17"]
    assert (tmp_path / "log").read_text().startswith("== prepare, job 17_0 on n, ")


def describe(folder: Path, sinfo: str, **variables: object) -> subprocess.CompletedProcess:
    path = slurm_path(folder / "bin", sinfo=sinfo, sacctmgr="exit 1")
    environment = {**os.environ, "PATH": path, **{name: str(value) for name, value in variables.items()}}
    command = [warm_python(), *program("site")]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_make_site_writes_the_site_s_file_once_and_always_shows_the_limits(tmp_path: Path) -> None:
    site = tmp_path / "site.env"
    first = describe(tmp_path, SINFO, SITE=site)
    assert first.returncode == 0, first.stderr
    written = site.read_text()
    assert "PARTITION=main # gpu:2, at most 1:00:00" in written
    site.write_text("ACCOUNT=mine\n")
    again = describe(tmp_path, SINFO, SITE=site)
    table = first.stdout.split("\n\n")[0]
    assert "| main*     | 3     | gpu:2         | 2    | 4000        | 1:00:00    |" in table
    assert (again.returncode, again.stdout.split("\n\n")) == (
        0,
        [table, f"{site} exists already and stays as it is; remove it first to write it again\n"],
    )
    assert site.read_text() == "ACCOUNT=mine\n"
    nowhere = describe(tmp_path, SINFO, SITE=tmp_path / "none" / "site.env")
    assert "none/site.env: cannot be written (No such file or directory)" in only_error(nowhere)
    assert "sinfo: no such command" not in only_error(describe(tmp_path, "exit 1", SITE=site))


def test_a_failed_download_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    words = {"STUDENT": "nobody/nothing", "RUNS": str(tmp_path / "runs"), "HF_HOME": str(tmp_path / "hub"), "SITE": ""}
    environment = {**os.environ, "PYTHON": warm_python(), **words, "HF_ENDPOINT": "http://127.0.0.1:1"}
    command = ["bash", ROOT / "slurm" / "download.sh", "sample"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert only_error(result).startswith("download.sh: error: the model nobody/nothing could not be fetched")
    assert not (tmp_path / "runs").exists()
