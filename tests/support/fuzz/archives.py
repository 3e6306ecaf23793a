"""MMLU's archive for --data_tar: damaged, compressed differently, with members that are not files or lie elsewhere."""

import bz2
import gzip
import io
import lzma
import random
import sys
import tarfile
from pathlib import Path

from support.fuzz.harness import Subject
from support.fuzz.mutation import Files, mutate_binary, mutate_text

from teacherlm.atlas import prepare_mmlu

FOLDERS = ("auxiliary_train", "dev", "val", "test")
NAMES = [
    "../victim/README",
    "/etc/cron.d/x",
    "data/../../victim/README",
    "data/test/../../../x_test.csv",
    "data/test/x/y_test.csv",
]
NAMES += [
    "data/test/" + "x" * 300 + "_test.csv",
    "data/test/\ud800_test.csv",
    "data/test/a\nb_test.csv",
    "data//test//z_test.csv",
]
NAMES += [
    "data/test",
    "data/test/_test.csv",
    "data/test/*_test.csv",
    "data/test/\x1b[2J_test.csv",
    "",
    ".",
    "data",
    "other/readme",
]
NAMES += ["/".join(["d" * 200] * 30) + "/test/a_test.csv", "test/virology_test.csv", "./data/test/astronomy_test.csv"]
KINDS = [
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.CONTTYPE,
]
ROW = b'What is "it",a,b,c,d,B\n'
BOMB = 1500 * 2**20
"""Number of bytes of a member in an archive of a few megabytes."""


def members() -> list[tuple[tarfile.TarInfo, bytes]]:
    made = []
    for folder in FOLDERS:
        name = "made_up.csv" if folder == "auxiliary_train" else f"virology_{folder}.csv"
        info = tarfile.TarInfo(f"data/{folder}/{name}")
        info.size = len(ROW) * 3
        made.append((info, ROW * 3))
    return made


def packed(made: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, errors="surrogateescape") as tar:
        for info, content in made:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def example(folder: Path) -> None:
    (folder / "data.tar").write_bytes(packed(members()))


def bomb(name: str, byte: bytes) -> bytes:
    """A compressed archive with one member of BOMB equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = BOMB
    return gzip.compress(info.tobuf()) + gzip.compress(byte * 2**20) * (BOMB // 2**20)


def damage(files: Files, draw: random.Random) -> Files:
    if draw.random() < 0.002:
        return {
            "data.tar": bomb(draw.choice(["data/test/virology_test.csv", "readme"]), draw.choice([b"\0", b"a", b"\n"]))
        }
    made = members()
    action = draw.choice(["bytes", "bytes", "header", "content", "name", "link", "pack", "pack", "many", "pax"])
    place = draw.randrange(len(made))
    info, content = made[place]
    if action == "content":
        content = mutate_text(content, draw)
        info.size = len(content)
        made[place] = (info, content)
    elif action in ("name", "link", "many"):
        for _ in range(1 if action != "many" else draw.choice([2, 50, 2000])):
            extra = tarfile.TarInfo(
                draw.choice(NAMES).encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
            )
            extra.size = len(ROW)
            if action == "link":
                extra.type, extra.size, extra.linkname = (
                    draw.choice(KINDS),
                    0,
                    draw.choice([*NAMES, "data/test/virology_test.csv"]),
                )
                extra.name = draw.choice([extra.name, "data/test/virology_test.csv", "data/test", "data"])
            made.insert(draw.randrange(len(made) + 1), (extra, ROW if extra.size else b""))
    elif action == "pax":
        info.pax_headers = {
            draw.choice(["path", "size", "linkpath", "GNU.sparse.size", "mtime", "hdrcharset"]): draw.choice(
                ["9" * 30, "-1", "x", "../v", "1e9"]
            )
        }
    try:
        whole = packed(made, draw.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    except (ValueError, UnicodeError, tarfile.TarError):  # a name that no header can hold
        whole = packed(members())
    if action in ("bytes", "header"):
        whole = mutate_binary(whole[:4096], draw) + whole[4096:] if action == "header" else mutate_binary(whole, draw)
    if action == "pack":
        whole = draw.choice([gzip.compress, bz2.compress, lzma.compress])(whole)
        whole = mutate_binary(whole, draw) if draw.random() < 0.6 else whole
    return {"data.tar": whole}


def read(place: Path) -> None:
    sys.argv = ["prepare_mmlu.py", "--data_tar", str(place / "data.tar"), "--output_directory", str(place / "output")]
    prepare_mmlu.main()


SUBJECT = Subject("archives", example, read, damage)
