"""Links that somebody else puts where a stage writes beside its output: their targets are never touched."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.atlas_server import CONTENT, Server, serve
from support.programs import only_error

from teacherlm.atlas.downloads import download
from teacherlm.core.errors import UserError
from teacherlm.core.files import make_anew, whole_file
from teacherlm.core.lock import one_writer
from teacherlm.core.outputs import require_writable
from teacherlm.core.progress_file import ProgressFile


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


VICTIM = "what the victim wrote\n"
OTHER = "nobody"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that everybody may write to; pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of this user's, elsewhere."""
    file = tmp_path / "victim"
    file.write_text(VICTIM)
    return file


@pytest.fixture
def plant(shared: Path) -> Callable[..., Path]:
    """Put a link into the shared folder, as another user if this user is root."""

    def plant(name: str, target: Path, *, hard: bool = False) -> Path:
        link = shared / name
        if hard:
            link.hardlink_to(target)  # the kernel lets others make none of what they cannot write
        elif os.geteuid():
            link.symlink_to(target)
        else:
            subprocess.run(["ln", "-s", target, link], user=OTHER, check=True)
        return link

    return plant


def test_a_probe_follows_no_link(shared: Path, victim: Path, plant: Callable) -> None:
    link = plant(f".probe-{os.getpid()}", victim)
    require_writable(shared)
    assert (victim.read_text(), link.is_symlink()) == (VICTIM, True)
    assert list(shared.iterdir()) == [link]


@pytest.mark.parametrize("hard", [False, True], ids=["symbolic", "hard"])
def test_a_lock_follows_no_link(shared: Path, victim: Path, plant: Callable, hard: bool) -> None:
    """Who holds a lock writes that into its file, whose name is fixed."""
    plant(".out.jsonl.lock", victim, hard=hard)
    with pytest.raises(UserError, match=r"\.out\.jsonl\.lock: this is a link"), one_writer(shared / "out.jsonl"):
        pass
    assert victim.read_text() == VICTIM


@pytest.mark.timeout(20)
def test_a_pipe_in_the_place_of_a_lock_is_refused(shared: Path) -> None:
    os.mkfifo(shared / ".out.jsonl.lock")
    with pytest.raises(UserError, match="not an ordinary file"), one_writer(shared / "out.jsonl"):
        pass


@pytest.mark.parametrize("hard", [False, True], ids=["symbolic", "hard"])
def test_what_is_done_so_far_follows_no_link(shared: Path, victim: Path, plant: Callable, hard: bool) -> None:
    """The progress file is appended to, and an incomplete last line is removed from it."""
    victim.write_text(VICTIM + "no line break")
    plant(".out.jsonl.progress", victim, hard=hard)
    with pytest.raises(UserError, match=r"\.out\.jsonl\.progress: this is a link"):
        ProgressFile(shared / ".out.jsonl.progress", {"seed": 1}, restart=False)
    assert victim.read_text() == VICTIM + "no line break"


@pytest.mark.parametrize("name", [".file.part", ".file.part.json", ".file.part.etag", ".file.download.json"])
def test_a_download_follows_no_link(
    shared: Path,
    victim: Path,
    plant: Callable,
    name: str,
    server: Server,
) -> None:
    plant(name, victim)
    download(f"http://127.0.0.1:{server.server_port}/file", shared / "file")
    assert ((shared / "file").read_bytes(), victim.read_text()) == (CONTENT, VICTIM)


def test_the_mark_of_a_file_that_is_made_follows_no_link(
    shared: Path, tmp_path: Path, plant: Callable, inside: Callable
) -> None:
    plant(".SAMPLE.jsonl.begun", tmp_path / "made by the victim")
    words = ["--benchmark", "sample", "--limit", 4, "--output_dir", shared, "--test_dir", tmp_path / "tests"]
    assert ".SAMPLE.jsonl.begun: this is a link" in only_error(inside("data_prepare", *words))
    assert not (tmp_path / "made by the victim").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_an_output_is_not_written_through_another_user_s_link(
    shared: Path, victim: Path, tmp_path: Path, plant: Callable, inside: Callable
) -> None:
    link = plant("SAMPLE.jsonl", victim)
    words = ["--benchmark", "sample", "--limit", 4, "--output_dir", shared, "--test_dir", tmp_path / "tests"]
    assert "SAMPLE.jsonl: this symbolic link belongs to another user" in only_error(inside("data_prepare", *words))
    with pytest.raises(UserError, match="another user"), whole_file(link):
        pass
    assert (victim.read_text(), link.is_symlink()) == (VICTIM, True)


def test_a_folder_that_is_made_anew_is_no_link(shared: Path, tmp_path: Path, plant: Callable) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "kept").touch()
    place = plant(".partial", tmp_path / "theirs")
    make_anew(place)
    assert (place.is_symlink(), list(place.iterdir())) == (False, [])
    assert (tmp_path / "theirs" / "kept").exists()


def test_a_partial_file_has_a_name_of_its_own_each_time(shared: Path) -> None:
    """Nobody can guess the name, and the file exists before its name can be read."""
    names = set()
    for _ in range(2):
        with whole_file(shared / "out") as file:
            file.write("text")
            file.flush()
            names |= {path.name for path in shared.iterdir() if path.name != "out"}
    assert len(names) == 2
    assert all(len(name.rsplit("-", 1)[1]) >= 16 for name in names)
