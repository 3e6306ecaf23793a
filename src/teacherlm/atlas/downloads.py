"""Download published files. Existing files are kept, interrupted downloads resume, and downloaded files are checked."""

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

import requests
from tqdm import tqdm

from teacherlm.atlas.contents import record_of
from teacherlm.core.errors import UserError, reason
from teacherlm.core.files import sync_file, whole_file
from teacherlm.core.json_files import load_object
from teacherlm.core.limits import DOWNLOAD_BYTES
from teacherlm.core.lock import one_writer
from teacherlm.core.manifests import sha256
from teacherlm.core.opening import create, open_unlinked
from teacherlm.core.outputs import require_file_place, require_writable, through_links

BASE_URL = "https://dl.fbaipublicfiles.com/atlas"
CHUNK = 2**20
TIMEOUT = 60
DIGEST_BYTES = 4096
"""Maximum number of bytes that are read from `{url}.sha256`: enough for a digest and a name."""


def fetch_all(base_url: str, names: list[str], output: Path) -> None:
    """Download `{base_url}/{name}` to `{output}/{name}` for each name, one after the other."""
    for name in names:
        download(f"{base_url.rstrip('/')}/{name}", output / name)


def download(url: str, target: Path) -> None:
    """Download a file unless it exists and is complete.

    An interrupted download resumes if the server still has the same file (by its length, and by its ETag or the time of
    its last change) and sends the missing bytes. Otherwise it begins again. The downloaded file is checked against the
    length and the MD5 that the server gives, and against `{url}.sha256` if that exists. Its digest is written to
    `.{name}.download.json` in the same folder. If the target is a symbolic link, the file that it points to is written.

    Raises:
        UserError: the server cannot be reached or has no such file, or the downloaded file fails a check.
    """
    require_writable(target.parent)
    require_file_place(target)
    with one_writer(target):
        fetch_whole(url, through_links(target))


def fetch_whole(url: str, target: Path) -> None:
    record = record_of(target)
    if is_whole(target, record):
        print(f"{target}: it is there already")
        return
    partial = target.with_name(f".{target.name}.part")
    said_file = partial.with_name(f"{partial.name}.json")
    try:
        said = fetch(url, partial, said_file)
        expected = published_digest(url)
    except requests.RequestException as error:
        raise UserError(
            f"{url} could not be downloaded ({reason(error)}); if this machine has no internet, download it elsewhere, "
            f"copy it to {target}, and run the same command again; or give a mirror with --base_url"
        ) from error
    digest = sha256(partial)
    check(url, partial, said, expected, digest)
    sync_file(partial)
    partial.rename(target)
    for file in (said_file, record):  # each may be a link
        file.unlink(missing_ok=True)
    with whole_file(record) as file:
        json.dump({"url": url, "bytes": target.stat().st_size, "sha256": digest}, file)
        file.write("\n")
    print(f"{target}: {target.stat().st_size} bytes, sha256 {digest}")


def is_whole(target: Path, record: Path) -> bool:
    """Whether the file exists. If this program downloaded it, it must still have the recorded length."""
    if not target.is_file():
        return False
    try:
        return load_object(record)["bytes"] == target.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return True  # there is no record, because the user copied the file here


class Said(NamedTuple):
    """What the server says about the whole file: its length in bytes, and two values that change when the file does."""

    length: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """The value for `If-Range`, with which the server sends a range only of the same file. A weak ETag is not
        usable."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified


def fetch(url: str, partial: Path, said_file: Path) -> Said:
    """Download the missing bytes of a file, or all of it, and return what the server says about the file.

    A range is accepted only if it is exactly the requested one, and of the same file. A server or proxy that answers
    with a different range would leave a damaged file.

    Raises:
        UserError: the server answers a request for the whole file with something else.
    """
    have, before = kept(url, partial, said_file)
    if have:
        if have == before.length:
            return before
        with ask(url, {"Range": f"bytes={have}-", "If-Range": before.validator}) as response:
            if response.status_code == 200:  # the whole file: it has changed, or the server does not support ranges
                return take_whole(url, response, partial, said_file)
            if response.status_code not in (206, 416):
                response.raise_for_status()
            why = mismatch(response, have, before)
            if why is None:
                rest = length_of(response)
                said = before if before.length or rest is None else before._replace(length=have + rest)
                append(url, response, partial, have, said.length)
                return said
        print(f"{partial}: the download begins again, because the server does not continue it: {why}")
    with ask(url, {}) as response:
        response.raise_for_status()
        if response.status_code != 200:
            raise UserError(
                f"{url}: the server answers a request for the whole file with status {response.status_code}; try again "
                "later, or give a mirror with --base_url"
            )
        return take_whole(url, response, partial, said_file)


def ask(url: str, headers: dict[str, str]) -> requests.Response:
    return requests.get(url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=TIMEOUT)


def kept(url: str, partial: Path, said_file: Path) -> tuple[int, Said]:
    """Number of bytes from an interrupted download, and what the server said about the file at that time.

    The number is 0 if the download cannot resume: the server gave nothing that identifies the file, or the partial file
    does not belong to this user.
    """
    nothing = 0, Said(None, None, None)
    try:
        found = partial.lstat()
        noted = load_object(said_file)
        said = Said(noted["length"], noted["etag"], noted["modified"])
    except (OSError, ValueError, KeyError, TypeError):
        return nothing
    ours = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_uid == os.geteuid()
    types = all(isinstance(one, kind | None) for one, kind in zip(said, (int, str, str)))
    if not ours or not types or noted.get("url") != url or not said.validator:
        return nothing
    if said.length is not None and found.st_size > said.length:
        return nothing
    return found.st_size, said


def mismatch(response: requests.Response, have: int, before: Said) -> str | None:
    """Why an answer is not the rest of a file after its first `have` bytes; None if it is."""
    given = response.headers.get("Content-Range", "none")
    if response.status_code != 206:
        return f"status {response.status_code}, Content-Range: {given}"
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", given.strip())
    if not found:
        return f"Content-Range: {given}"
    first, last = int(found[1]), int(found[2])
    total = before.length if found[3] == "*" else int(found[3])
    if first != have or last < first:
        return f"the bytes from {have} on were requested, got {given}"
    if (before.length is not None and total != before.length) or (total is not None and last + 1 != total):
        return f"the file had {before.length} bytes before, now: {given}"
    if (length := length_of(response)) is not None and length != last + 1 - first:
        return f"{given} with {length} bytes"
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        return f"Content-Encoding: {encoding}"
    for name, known in (("ETag", before.etag), ("Last-Modified", before.modified)):
        if (now := response.headers.get(name)) and known and now != known:
            return f"its {name} was {known}, is {now}"
    return None


def length_of(response: requests.Response) -> int | None:
    """The length of an answer according to the server; None if it does not say."""
    given = response.headers.get("Content-Length", "")
    return int(given) if re.fullmatch(r"[0-9]{1,18}", given) else None


def take_whole(url: str, response: requests.Response, partial: Path, said_file: Path) -> Said:
    """Write the whole file from an answer, and remove what was downloaded before."""
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise UserError(
            f"{url}: the server sent it compressed ({encoding}), although that was not requested; give another mirror "
            "with --base_url"
        )
    said = Said(length_of(response), response.headers.get("ETag"), response.headers.get("Last-Modified"))
    said_file.unlink(missing_ok=True)
    partial.unlink(missing_ok=True)
    os.close(create(partial))
    if said.validator and (said.length is None or said.length > CHUNK):  # a small file need not resume
        with whole_file(said_file) as file:
            json.dump({"url": url, **said._asdict()}, file)
    append(url, response, partial, 0, said.length)
    return said


def append(url: str, response: requests.Response, partial: Path, have: int, length: int | None) -> None:
    """Append the bytes of an answer to the partial file of `have` bytes. A terminal shows a progress bar.

    Raises:
        UserError: the server gave no length and does not stop sending.
    """
    name = url.rsplit("/", 1)[1]
    with (
        os.fdopen(open_unlinked(partial, os.O_WRONLY | os.O_APPEND), "ab") as file,
        tqdm(total=length, initial=have, unit="B", unit_scale=True, desc=name, disable=None) as bar,
    ):
        for chunk in response.iter_content(CHUNK):
            have += len(chunk)
            if length is None and have > DOWNLOAD_BYTES:
                partial.unlink()
                raise UserError(
                    f"{url}: the server gives no length and has sent {DOWNLOAD_BYTES} bytes, more than any published "
                    "file has; give another mirror with --base_url"
                )
            file.write(chunk)
            bar.update(len(chunk))


def published_digest(url: str) -> str | None:
    """The SHA-256 in `{url}.sha256`, a file in the format of sha256sum; None if there is no such file."""
    with ask(f"{url}.sha256", {}) as response:
        beginning = next(response.iter_content(DIGEST_BYTES), b"") if response.ok else b""
    found = re.match(rb"[0-9a-f]{64}\b", beginning)
    return found and found[0].decode()


def check(url: str, partial: Path, said: Said, expected: str | None, digest: str) -> None:
    size = partial.stat().st_size
    length, etag = said.length, said.etag
    if length is not None and size < length:
        raise UserError(
            f"{url}: the connection ended after {size} of {length} bytes; run the same command again to continue"
        )
    wrong = None
    if length is not None and size != length:
        wrong = f"the server announced {length} bytes, but {size} arrived"
    elif expected and expected != digest:
        wrong = f"its sha256 is {digest}, but {url}.sha256 says {expected}"
    elif etag and re.fullmatch(r'"[0-9a-f]{32}"', etag) and etag.strip('"') != md5(partial):
        wrong = f"its MD5 is not the {etag} that the server gives"
    if wrong:
        partial.unlink()
        raise UserError(f"{url}: damaged on the way: {wrong}; run the same command again, which begins from 0 bytes")


def md5(file: Path) -> str:
    """The MD5 of a file. It is S3's ETag of a file that was uploaded in one piece."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()
