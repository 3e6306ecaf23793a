"""Folders that several users share: settings and chains of others are neither executed, followed nor changed."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.files import contents
from support.programs import ROOT, only_error, program, warm_python
from support.strangers import AS_NOBODY, give_to_nobody, require_nobody

from teacherlm.chain import settings_file
from teacherlm.chain.settings_file import Submission
from teacherlm.core.owners import make_own_folder

CHAIN = ["bash", str(ROOT / "slurm" / "chain.sh")]


def steer(command: str, folder: Path) -> subprocess.CompletedProcess:
    return run([warm_python(), *program("steer"), command], folder)


def run(command: list[object], folder: Path, **variables: str) -> subprocess.CompletedProcess:
    python = sys.executable if command[0] == AS_NOBODY[0] else warm_python()  # which is root's alone
    environment = {**os.environ, "PYTHON": python, "LAUNCHER": "local", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(word) for word in command]
    return subprocess.run(command, cwd=folder, env=environment | variables, capture_output=True, text=True)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /scratch: everybody may write there."""
    require_nobody()
    for folder in (*reversed(tmp_path.parents), tmp_path):
        assert folder == Path("/") or folder.stat().st_uid == 0
    folder = tmp_path / "scratch"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.mark.parametrize("theirs", ["runs/sample", "runs/sample/limit-8", "runs/sample/limit-8/.locks"])
@pytest.mark.parametrize("command", [CHAIN, ["bash", str(ROOT / "slurm" / "download.sh")]])
def test_a_run_in_another_user_s_folder_is_one_line(shared: Path, theirs: str, command: list[str]) -> None:
    (shared / theirs).mkdir(parents=True)
    give_to_nobody(shared / theirs)
    before = contents(shared)
    words = {"TASK": "text", "LIMIT": "8", "RUNS": str(shared / "runs")}
    assert f"{shared / theirs}: this folder belongs to nobody" in only_error(run([*command, "sample"], shared, **words))
    assert contents(shared) == before


def test_two_users_in_one_folder_are_a_clear_line(shared: Path) -> None:
    """Here the user `nobody` uses root's folder, whose files it may read."""
    words = {"TASK": "text", "LIMIT": "8", "RUNS": str(shared / "runs")}
    make_own_folder(shared / "runs/sample/limit-8/.locks", shared / "runs")
    error = only_error(run([*AS_NOBODY, *CHAIN, "sample"], shared, **words, HOME=str(shared), TMPDIR="/tmp"))
    assert "limit-8/.locks: you may not write there; choose a folder of your own (RUNS=...)" in error


def test_a_link_of_another_user_is_not_followed(shared: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (shared / "runs").mkdir()
    (shared / "runs" / "sample").symlink_to(mine)
    give_to_nobody(shared / "runs")
    words = {"TASK": "text", "RUNS": str(shared / "runs")}
    assert "runs/sample: this folder belongs to nobody" in only_error(run([*CHAIN, "sample"], shared, **words))
    assert list(mine.iterdir()) == []


def test_a_folder_that_is_a_link_of_one_s_own_is_used(tmp_path: Path) -> None:
    """Here `runs/creak` is on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "creak").symlink_to(tmp_path / "disk")
    make_own_folder(tmp_path / "runs/creak/all/.locks", tmp_path / "runs")
    assert (tmp_path / "disk" / "all" / ".locks").is_dir()


def save(chain: Path, **variables: str) -> Path:
    return chain / settings_file.save(chain, Submission("sample", str(chain), variables))


def test_settings_are_read_as_they_were_saved(tmp_path: Path) -> None:
    odd = {"TASK": "a'b\"c\n$(touch ran)`", "STUDENT": "modèle \udce9", "SEED": "", "FLAGS": "=x=", "MODEL": "\x1b[2J"}
    file = save(tmp_path, **odd)
    assert settings_file.read(file) == Submission("sample", str(tmp_path), odd)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_each_submission_has_settings_of_its_own(shared: Path) -> None:
    """The user's earlier settings are removed. Those of other users stay, because their waiting jobs may need them."""
    theirs = shared / "settings-theirs.json"
    theirs.write_text("{}")
    give_to_nobody(theirs)
    first = save(shared, SEED="1")
    second = save(shared, SEED="2")
    assert first != second
    assert sorted(path.name for path in shared.iterdir()) == sorted([theirs.name, second.name])


def settings(file: Path, **variables: object) -> Path:
    words = {"benchmark": "sample", "directory": str(file.parent), "variables": variables}
    file.write_text(json.dumps(words))
    file.chmod(0o600)
    return file


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a job's script as Slurm would, up to where it begins to work."""

    def start(file: Path, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", ROOT / "slurm" / "job.sh", "prepare", ROOT, file, "-", sys.executable, "-"]
        slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node1", "SITE": ""}
        return run(command, tmp_path, **slurm | variables)

    return start


def test_a_job_does_what_its_settings_say(job: Callable, tmp_path: Path) -> None:
    file = settings(tmp_path / "settings-1.json", LIMIT="4", RUNS=str(tmp_path / "it's $(x)"))
    done = job(file, LIMIT="8")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "it's $(x)/sample/limit-4/prepare/SAMPLE.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    "variables",
    [
        {"SEED": "a[$(touch ran)]"},
        {"SIGNAL_SECONDS": "a[$(touch ran)]"},
        {"PATH": "/tmp"},
        {"BASH_ENV": "/tmp/x"},
        {"a[$(touch ran)]": "1"},
        {"SEED": 1},
        {"SEED": "1\0"},
        {"OTHER_DATA": "/x"},
    ],
)
def test_a_job_executes_nothing_of_its_settings(job: Callable, tmp_path: Path, variables: dict[str, object]) -> None:
    file = settings(tmp_path / "settings-1.json", **variables)
    only_error(job(file))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def planted(file: Path, what: str) -> None:
    if what == "link":
        settings(file.with_name("other.json"))
        file.symlink_to("other.json")
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    elif what == "writable":
        settings(file).chmod(0o666)
    elif what == "theirs":
        give_to_nobody(settings(file))
    elif what == "brackets":
        settings(file).write_text("[" * 500_000)
    elif what == "large":
        settings(file).write_text(" " * 2_000_000 + "{}")
    elif what == "shell":
        settings(file).write_text("touch ran\n")
    else:
        settings(file).write_text(what)


@pytest.mark.parametrize(
    "what",
    [
        *("nothing", "link", "pipe", "folder", "writable", "theirs", "brackets", "large", "shell"),
        *("{}", "[]", '"x"', "\xff"),
        '{"benchmark": "sample", "directory": "/", "variables": [1]}',
        '{"benchmark": 1, "directory": 2, "variables": {}}',
    ],
)
def test_what_is_no_settings_file_of_one_s_own_is_one_line(job: Callable, tmp_path: Path, what: str) -> None:
    if what == "theirs":
        require_nobody()
    file = tmp_path / "settings-1.json"
    if what != "nothing":
        planted(file, what)
    assert str(file) in only_error(job(file))
    assert not (tmp_path / "ran").exists()


def test_a_site_s_file_of_another_user_is_not_executed(shared: Path) -> None:
    site = shared / "site.env"
    site.write_text("touch ran\n")
    give_to_nobody(site)
    assert "site.env: this file belongs to nobody" in only_error(
        run([*CHAIN, "sample"], shared, LAUNCHER="slurm", SITE=str(site))
    )
    os.chown(site, 0, 0)
    site.chmod(0o666)
    assert "everybody may write this file" in only_error(
        run([*CHAIN, "sample"], shared, LAUNCHER="slurm", SITE=str(site))
    )
    assert [path.name for path in shared.iterdir()] == ["site.env"]


GOOD = "prepare\t17\t0\t-\tprepare\t/runs/logs/prepare.log\n"


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "sample" / "all" / "chains" / "mine"
    (folder / "logs").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "row",
    [
        "prepare\n",
        GOOD.replace("prepare\t17", "cook\t17"),
        GOOD.replace("17", "17; touch ran"),
        GOOD.replace("17", "$(touch ran)"),
        GOOD.replace("17", "--user=root"),
        GOOD.replace("\t0\t", "\t0-99999999999\t"),
        GOOD.replace("\t0\t", "\tx\t"),
        GOOD.replace("\tprepare\t", "\t../../../victim\t"),
        GOOD.replace("/runs/logs/prepare.log", "/etc/shadow"),
        GOOD.replace("17", "\x1b]0;title\x07"),
        GOOD.replace("prepare\t17", "\udcff\t17"),
        GOOD.replace("\n", "\tmore\n"),
        "\0\n",
        "\n",
    ],
)
@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_malformed_list_of_jobs_is_one_line(chain: Path, tmp_path: Path, row: str, command: str) -> None:
    (chain / "jobs.tsv").write_text(GOOD + row, encoding="utf-8", errors="surrogateescape")
    error = only_error(steer(command, tmp_path))
    assert f"{chain.relative_to(tmp_path)}/jobs.tsv, line 2: " in error
    assert error.isprintable()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "theirs", "large"])
def test_what_is_no_list_of_jobs_of_one_s_own_is_one_line(chain: Path, tmp_path: Path, kind: str) -> None:
    file = chain / "jobs.tsv"
    if kind == "large":
        file.write_text(GOOD * 200_000)
    elif kind == "theirs":
        require_nobody()
        file.write_text(GOOD)
        give_to_nobody(file)
    else:
        planted(file, kind)
    result = steer("status", tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert str(chain.relative_to(tmp_path)) in result.stderr.splitlines()[0]


def test_a_log_is_shown_without_what_a_terminal_obeys(chain: Path, tmp_path: Path) -> None:
    (chain / "jobs.tsv").write_text(GOOD)
    evil = b"step 1\n\x1b]0;owned\x07\x1b[2Jred\x1b[31m\n\xff\xfe\xc2\x9b2J\nlast\t1\n"
    (chain / "logs" / "prepare.log").write_bytes(b"x" * 10_000_000 + b"\n" + evil)
    shown = steer("logs", tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.replace("\n", "").isprintable()
    assert "\\x1b]0;owned\\x07\\x1b[2Jred" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "last    1"
    assert len(shown.stdout) < 300_000


def test_a_line_of_a_name_that_a_terminal_would_obey(tmp_path: Path) -> None:
    """The chain itself prints the line before any stage begins."""
    error = run([*CHAIN, "sample"], tmp_path, TOKENIZATION="\x1b[2J\x07").stderr
    assert error == "chain.sh: error: TOKENIZATION=?[2J?: auto, apart or joint was expected\n"
