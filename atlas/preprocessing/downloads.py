"""Fetch published files: what is there is kept, what was interrupted goes on, what arrives is checked."""

import hashlib
import json
import re
from pathlib import Path

import requests
from tqdm import tqdm

from teacherlm.errors import UserError, reason
from teacherlm.files import require_file_place, require_writable, sync_file, through_links, whole_file
from teacherlm.lock import one_writer
from teacherlm.manifests import sha256

BASE_URL = "https://dl.fbaipublicfiles.com/atlas"
CHUNK = 2**20
TIMEOUT = 60


def fetch_all(base_url: str, names: list[str], output: Path) -> None:
    """Fetch `{base_url}/{name}` to `{output}/{name}`, one after the other."""
    for name in names:
        download(f"{base_url.rstrip('/')}/{name}", output / name)


def download(url: str, target: Path) -> None:
    """Fetch a file, unless it is there and whole.

    An interrupted download goes on where it ended, if the server still has the same file (its ETag). What arrived is
    checked against the length and the MD5 that the server says, and against `{url}.sha256` where there is one; its
    digest is written to `.{name}.download.json` beside it. A symbolic link stays one: what it leads to is fetched.

    Raises:
        UserError: the server cannot be reached, has no such file, or what arrived is not what it said.
    """
    require_writable(target.parent)
    require_file_place(target)
    with one_writer(target):
        fetch_whole(url, through_links(target))


def fetch_whole(url: str, target: Path) -> None:
    record = target.with_name(f".{target.name}.download.json")
    if is_whole(target, record):
        print(f"{target}: there already")
        return
    partial = target.with_name(f".{target.name}.part")
    try:
        etag, length = fetch(url, partial, partial.with_name(f"{partial.name}.etag"))
        expected = published_digest(url)
    except requests.RequestException as error:
        raise UserError(
            f"{url} could not be fetched ({reason(error)}); on a machine without internet, fetch it elsewhere, copy it "
            f"to {target}, and run this again there; or give a mirror with --base_url"
        ) from error
    digest = sha256(partial)
    check(url, partial, etag, length, expected, digest)
    sync_file(partial)
    partial.rename(target)
    partial.with_name(f"{partial.name}.etag").unlink(missing_ok=True)
    with whole_file(record) as file:
        json.dump({"url": url, "bytes": target.stat().st_size, "sha256": digest}, file)
        file.write("\n")
    print(f"{target}: {target.stat().st_size} bytes, sha256 {digest}")


def is_whole(target: Path, record: Path) -> bool:
    """Whether the file is there; one that this program fetched must still have its length."""
    if not target.is_file():
        return False
    try:
        return json.loads(record.read_text(encoding="utf-8"))["bytes"] == target.stat().st_size
    except (OSError, ValueError, KeyError):
        return True  # brought here by hand


def fetch(url: str, partial: Path, etag_file: Path) -> tuple[str | None, int | None]:
    """Append what is missing of a file, or begin anew; (its ETag, its length) as the server says them."""
    have = partial.stat().st_size if partial.exists() else 0
    known = etag_file.read_text(encoding="utf-8") if etag_file.exists() else None
    headers = {"Accept-Encoding": "identity"}
    if have and known:
        headers |= {"Range": f"bytes={have}-", "If-Range": known}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing is left to send
            return known, have
        response.raise_for_status()
        goes_on = response.status_code == 206
        etag = response.headers.get("ETag")
        if etag and not etag.startswith("W/"):
            etag_file.write_text(etag, encoding="utf-8")
        else:
            etag_file.unlink(missing_ok=True)
        rest = response.headers.get("Content-Length")
        length = int(rest) + (have if goes_on else 0) if rest else None
        name = url.rsplit("/", 1)[1]
        with (
            open(partial, "ab" if goes_on else "wb") as file,
            tqdm(
                total=length, initial=have if goes_on else 0, unit="B", unit_scale=True, desc=name, disable=None
            ) as bar,
        ):
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return etag, length


def published_digest(url: str) -> str | None:
    """The SHA-256 that `{url}.sha256` gives, in the format of sha256sum; None where there is no such file."""
    response = requests.get(f"{url}.sha256", timeout=TIMEOUT)
    found = re.match(r"[0-9a-f]{64}\b", response.text) if response.ok else None
    return found and found.group()


def check(url: str, partial: Path, etag: str | None, length: int | None, expected: str | None, digest: str) -> None:
    size = partial.stat().st_size
    if length is not None and size < length:
        raise UserError(
            f"{url}: the connection ended after {size} of {length} bytes; run this again, it goes on from there"
        )
    wrong = None
    if length is not None and size != length:
        wrong = f"{length} bytes were announced, {size} arrived"
    elif expected and expected != digest:
        wrong = f"its sha256 is {digest}, {url}.sha256 says {expected}"
    elif etag and re.fullmatch(r'"[0-9a-f]{32}"', etag) and etag.strip('"') != md5(partial):
        wrong = f"its MD5 is not the {etag} that the server says"
    if wrong:
        partial.unlink()
        raise UserError(f"{url}: damaged on the way: {wrong}; run this again, it begins anew")


def md5(file: Path) -> str:
    """For S3, whose ETag of a file that came in one piece it is."""
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()
