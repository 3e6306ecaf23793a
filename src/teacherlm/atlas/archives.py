"""Unpack only the expected files of a tar archive. The archive does not decide where they are written.

Python's `tarfile.extractall` writes whatever an archive asks for. Its filters against that are missing in some versions
of Python and had security holes in others (CVE-2025-4517), and an archive can keep its header parser busy for hours. So
this module reads each header with `TarInfo.frombuf`, and writes only the expected members.
"""

import bz2
import gzip
import itertools
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from teacherlm.core.errors import UserError, disk_error, reason
from teacherlm.core.names import is_plain_name

OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
"""Maps the first bytes of a compressed file to the function that opens it."""
MOST_BYTES = 512 * 2**20
"""Maximum number of bytes of an unpacked archive. MMLU's has 166 million. A small file can unpack to any size."""
MOST_MEMBERS = 10_000
LONGEST_HEADER = 64 * 1024
"""Maximum number of bytes of a header with a member's long name or other attributes."""
PIECE = 64 * 1024
HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
"""Types of headers that precede a member and describe it."""
EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
"""Types of members without contents."""
DAMAGED = (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)


def unpack(archive: Path, expected: re.Pattern[str], place: Path) -> int:
    """Write the expected members of an archive into a folder, and return their number.

    Args:
        archive: a tar file, uncompressed or compressed with gzip, bzip2 or xz.
        expected: matches the whole name of each expected member. Its groups are the folder and the file name under
            which the member is written. Other members are skipped.
        place: an empty folder.

    Raises:
        UserError: the file is not a complete tar archive or is too large, a member's name leads out of its folder, or
            an expected member is a link, occurs twice, or has an unsafe name.
    """
    count = 0
    try:
        with open_packed(archive) as file:
            for name, member, pieces in members(archive, file):
                if name.startswith("/") or ".." in name.split("/"):
                    raise UserError(f"{archive}: refused: its member {name!r:.200} leads out of its folder")
                found = expected.fullmatch(name)
                if found is None or member.type == tarfile.DIRTYPE:
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise UserError(f"{archive}: refused: its member {name!r:.200} is a link, or not an ordinary file")
                if not all(map(is_plain_name, found.groups())):
                    raise UserError(f"{archive}: refused: its member {name!r:.200} has an unsafe name")
                folder, own_name = found.groups()
                (place / folder).mkdir(exist_ok=True)
                write_new(archive, place / folder / own_name, pieces)
                count += 1
    except DAMAGED as error:
        raise disk_error(error) or UserError(
            f"{archive}: not a complete tar archive ({reason(error)}); download it again"
        ) from error
    return count


def write_new(archive: Path, file: Path, pieces: Iterator[bytes]) -> None:
    if file.exists():
        raise UserError(f"{archive}: refused: it contains {file.parent.name}/{file.name} twice")
    with open(file, "xb") as handle:
        handle.writelines(pieces)


def open_packed(archive: Path) -> IO[bytes]:
    with open(archive, "rb") as file:
        start = file.read(8)
    opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), open)
    return opener(archive, "rb")


def members(archive: Path, file: IO[bytes]) -> Iterator[tuple[str, tarfile.TarInfo, Iterator[bytes]]]:
    """Yield (name, header, pieces of its contents) for each member, in order. Contents that are not read are skipped.

    A long name is in a separate header before the member's header (GNU's `L`, POSIX's `x`).

    Raises:
        UserError: the archive has too many members or too many bytes.
        tarfile.TarError, EOFError, ValueError: the file is not a complete archive.
    """
    read, given = 0, {}
    for _ in range(MOST_MEMBERS * 2):
        header = file.read(tarfile.BLOCKSIZE)
        if header == bytes(tarfile.BLOCKSIZE):
            return
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        is_header = member.type in HEADERS
        name, size = member.name, member.size
        if not is_header:
            name, size, given = given.get("path", name), int(given.get("size", size)), {}
        if member.type in EMPTY:
            size = 0  # even if the header gives another size
        if member.type == tarfile.GNUTYPE_SPARSE or size < 0:
            raise tarfile.ReadError(f"{name!r:.200} is a sparse file, or has a negative size")
        blocks = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        read += tarfile.BLOCKSIZE + blocks
        if read > MOST_BYTES:
            raise UserError(
                f"{archive}: refused: it unpacks to more than {MOST_BYTES:,} bytes; MMLU's archive has 166 million"
            )
        rest = contents(file, size)
        if not is_header:
            yield name.removesuffix("/"), member, rest
        elif member.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if size > LONGEST_HEADER:
                raise tarfile.ReadError(f"a header of {size} bytes")
            data = b"".join(rest)
            long_name = {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
            given |= long_name if member.type == tarfile.GNUTYPE_LONGNAME else attributes(data)
        for _ in itertools.chain(rest, contents(file, blocks - size)):
            pass
    raise UserError(f"{archive}: refused: it has more than {MOST_MEMBERS:,} members")


def contents(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes in pieces."""
    while size:
        piece = file.read(min(PIECE, size))
        if not piece:
            raise EOFError("it is truncated")
        size -= len(piece)
        yield piece


def attributes(data: bytes) -> dict[str, str]:
    """The name and size in a POSIX header, as far as it has them. Its records are lines `LENGTH KEY=VALUE`."""
    found, start = {}, 0
    while start < len(data):
        blank = data.index(b" ", start, start + 20)
        end = start + int(data[start:blank])
        key, _, value = data[blank + 1 : end - 1].partition(b"=")
        if end <= blank or end > len(data):
            raise tarfile.ReadError("a header's record has no length")
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        start = end
    return found
