"""Downloads of published files, from a server on this machine."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.atlas_server import (
    CONTENT,
    Server,
    serve,
)
from support.programs import ROOT, only_error

from teacherlm.atlas import downloads
from teacherlm.atlas.contents import noted_digest, record_of
from teacherlm.atlas.downloads import download
from teacherlm.core.errors import UserError


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


def script(name: str, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "atlas" / "preprocessing" / f"{name}.py", *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


def test_a_checkpoint_and_a_corpus_by_their_names(server: Server, tmp_path: Path) -> None:
    base = ["--base_url", f"http://127.0.0.1:{server.server_port}", "--output_directory", tmp_path]
    done = script("download_model", "--model", "models/atlas/base", *base)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models/atlas/base/model.pth.tar").read_bytes() == CONTENT
    assert hashlib.sha256(CONTENT).hexdigest() in done.stdout
    assert script("download_corpus", "--corpus", "corpora/wiki/enwiki-dec2018", *base).returncode == 0
    assert (tmp_path / "corpora/wiki/enwiki-dec2018/infobox.jsonl").read_bytes() == CONTENT
    server.asked.clear()
    assert "there already" in script("download_model", "--model", "models/atlas/base", *base).stdout
    assert server.asked == []
    assert "models/atlas_nq/xxl" in only_error(script("download_model", "--model", "models/atlas/small", *base))


def test_an_index_is_two_files_a_shard(server: Server, tmp_path: Path) -> None:
    server.content = b"x" * 10
    base = ["--base_url", f"http://127.0.0.1:{server.server_port}", "--output_directory", tmp_path]
    done = script("download_index", "--index", "indices/atlas/wiki/xl", *base)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "indices/atlas/wiki/xl").glob("*.pt")}
    assert names == {f"{kind}.{shard}.pt" for shard in range(128) for kind in ("passages", "embeddings")}


def test_an_interrupted_download_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut = 3_000_000
    url, target = f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file"
    with pytest.raises(UserError, match=r"run the same command again"):
        download(url, target)
    assert not target.exists()
    download(url, target)
    assert target.read_bytes() == CONTENT
    ranges = [asked for path, asked in server.asked if path == "/file"]
    assert ranges[0] is None and int(re.findall(r"\d+", ranges[1])[0]) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".file.download.json", "file"]


def test_a_file_that_changed_on_the_server_begins_anew(server: Server, tmp_path: Path) -> None:
    server.cut = 3_000_000
    url, target = f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file"
    with pytest.raises(UserError):
        download(url, target)
    server.content = CONTENT[::-1]
    download(url, target)
    assert target.read_bytes() == CONTENT[::-1]


def without_range(status: int, headers: dict[str, str], rest: bytes) -> tuple[int, bytes]:
    del headers["Content-Range"]
    return status, rest


def another_part(status: int, headers: dict[str, str], rest: bytes) -> tuple[int, bytes]:
    """Answer like a cache that keeps the first part that was requested."""
    size = len(CONTENT)
    headers["Content-Range"] = f"bytes {size - len(rest) - 1000}-{size - 1001}/{size}"
    return status, CONTENT[size - len(rest) - 1000 : size - 1000]


def of_a_longer_file(status: int, headers: dict[str, str], rest: bytes) -> tuple[int, bytes]:
    size = len(CONTENT)
    headers["Content-Range"] = f"bytes {size - len(rest)}-{size - 1}/{size + 7}"
    return status, rest


def of_other_length(status: int, headers: dict[str, str], rest: bytes) -> tuple[int, bytes]:
    return status, rest[:-5]


def of_another_file(status: int, headers: dict[str, str], rest: bytes) -> tuple[int, bytes]:
    headers |= {"ETag": '"another"', "Last-Modified": "Wed, 02 Mar 2022 10:00:00 GMT"}
    return status, bytes(len(rest))


def beyond_its_end(status: int, headers: dict[str, str], rest: bytes) -> tuple[int, bytes]:
    headers["Content-Range"] = "bytes */77"
    return 416, b""


def packed(status: int, headers: dict[str, str], rest: bytes) -> tuple[int, bytes]:
    headers["Content-Encoding"] = "gzip"
    return status, rest


@pytest.mark.parametrize("etag", [True, False], ids=["ETag", "Last-Modified"])
@pytest.mark.parametrize(
    "wrong", [without_range, another_part, of_a_longer_file, of_other_length, of_another_file, beyond_its_end, packed]
)
def test_a_part_that_is_not_the_missing_one_is_not_appended(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture, wrong: Callable, etag: bool
) -> None:
    """The download begins again in the same call. If the ETag is not an MD5, no other check would find such a part."""
    server.cut, server.wrong, server.etag = 3_000_000, wrong, etag
    url, target = f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file"
    with pytest.raises(UserError, match=r"run the same command again"):
        download(url, target)
    download(url, target)
    assert target.read_bytes() == CONTENT
    assert "the download begins again, because the server does not continue it" in capsys.readouterr().out
    asked = [given for path, given in server.asked if path == "/file"]
    assert [given is None for given in asked] == [True, False, True]


def test_without_an_etag_the_time_of_the_last_change_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut, server.etag = 3_000_000, False
    url, target = f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file"
    with pytest.raises(UserError):
        download(url, target)
    download(url, target)
    assert target.read_bytes() == CONTENT
    assert [bool(given) for path, given in server.asked if path == "/file"] == [False, True]


def test_a_part_of_another_address_is_not_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.cut = 3_000_000
    with pytest.raises(UserError):
        download(f"http://127.0.0.1:{server.server_port}/other", tmp_path / "file")
    download(f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert ("/file", None) in server.asked


def test_what_was_damaged_on_the_way_is_not_kept(server: Server, tmp_path: Path) -> None:
    url, target = f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file"
    server.digest = "0" * 64
    with pytest.raises(UserError, match=r"damaged on the way: its sha256 is .* says 0000"):
        download(url, target)
    assert not target.exists() and not (tmp_path / ".file.part").exists()
    server.digest = hashlib.sha256(CONTENT).hexdigest()
    download(url, target)
    assert target.read_bytes() == CONTENT


def test_a_server_that_says_no_length_and_does_not_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.length = False
    url, target = f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file"
    monkeypatch.setattr(downloads, "DOWNLOAD_BYTES", len(CONTENT) - 1)
    with pytest.raises(UserError, match=rf"gives no length and has sent {len(CONTENT) - 1} bytes"):
        download(url, target)
    assert not target.exists() and not (tmp_path / ".file.part").exists()
    monkeypatch.undo()
    download(url, target)
    assert target.read_bytes() == CONTENT


def test_records_of_a_download_that_are_none_count_as_none(server: Server, tmp_path: Path) -> None:
    """The records of a complete and of an unfinished file have more brackets than a parser can nest."""
    url, target = f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file"
    server.cut = 3_000_000
    with pytest.raises(UserError, match=r"run the same command again"):
        download(url, target)
    begun = [path for path in tmp_path.iterdir() if path.read_bytes().startswith(b"{")]
    assert begun
    for path in begun:
        path.write_text("[" * 100_000)
    download(url, target)
    assert target.read_bytes() == CONTENT
    record_of(target).write_text("[" * 100_000)
    assert noted_digest(target) is None
    download(url, target)
    assert target.read_bytes() == CONTENT


def test_offline_it_says_what_to_do(tmp_path: Path) -> None:
    with serve() as server:
        port = server.server_port
    base = ["--base_url", f"http://127.0.0.1:{port}", "--output_directory", tmp_path]
    message = only_error(script("download_model", "--model", "models/atlas/xl", *base))
    assert "could not be downloaded" in message and f"copy it to {tmp_path}/models/atlas/xl/model.pth.tar" in message
