"""Damage valid files: their bytes, lines, fields and structure. The seed determines the damage."""

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backports import zstd

Files = dict[str, bytes]
"""Maps each file's name, relative to one folder, to its contents."""
Damage = Callable[[bytes, random.Random], bytes]

BYTES = b'\x00\n\r\t "\\{}[]:,0e-.uN\x1e\x7f\x85\xa8\xc3\xe2\xed\xef\xff'
NUMBERS = [
    *("0", "-0", "1", "-1", "-0.0", "1.5", "1e999", "-1e-999", "1e308", "NaN", "-Infinity", "00", "1_000", "0x1", "+1"),
    *("9" * 400, "9" * 5000, str(2**31), str(2**63), str(-(2**63)), str(2**64), "1e15"),
]
TEXTS = [
    *('""', '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0000"', '"\\u2028"', "'x'", '"true"', '"false"', '"0.5"', '"NaN"'),
    *(
        '"' + "é" * 100_000 + '"',
        '"' + " (A) " * 20_000 + '"',
        '"' + "\\n" * 1000 + '"',
        '"{{ 7 }}"',
        '"=1+1"',
        '"a|b"',
    ),
    *('"{% for a in range(999) %}{% endfor %}"', '"$(id)"', '"\\u001b[2J"', '"\\u202e"', '"<script>"', '"a,b"', '"A"'),
]
PATHS = [
    *('"../victim/README"', '"../../victim/README"', '"../../../victim/README"', '"/../../../victim/README"'),
    *('"/"', '"."', '".."', '"a/b"', '"/etc/passwd"', '"/dev/zero"', '"' + "x" * 300 + '"', '"CON"', '"-rf"', '"~"'),
]
"""Paths that lead out of a folder. The files are read next to a folder `victim/` with a README (see harness.py)."""
STRUCTURES = [
    *("null", "true", "[]", "{}", "[[0, 8], null]", "[" * 40 + "]" * 40, "[" * 3000, '{"a":' * 3000, "[" * 100_000),
    *(
        '{"_type": "Value"}',
        '{"a": {}, "a": []}',
        '[1, "a"]',
        '["a", null]',
        '{"": 1}',
        "[NaN]",
        "\ufeff",
        '[{"a": 1}]',
    ),
]
VALUES = [*NUMBERS, *TEXTS, *PATHS, *STRUCTURES]
"""JSON values, or texts that look like one, with which a field may be replaced."""

EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
"""Numbers for the fields of binary formats: lengths, counts and offsets."""


def damage_one(files: Files, draw: random.Random, names: Sequence[str] | None = None) -> Files:
    """Damage one of the files one to three times, or remove it. Structured files are mostly damaged in their structure.

    Args:
        names: the files that may be damaged; None: all of them.
    """
    name = draw.choice(sorted(names if names is not None else files))
    if len(files) > 1 and draw.random() < 0.02:
        return {other: content for other, content in files.items() if other != name}
    content = files[name]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content = damage_of(name)(content, draw)
    return files | {name: content}


def damage_of(name: str) -> Damage:
    """The function that damages files of the format that this name has."""
    ending = name.rpartition(".")[2]
    if ending in ("gz", "zst"):
        return mutate_packed
    return {"jsonl": mutate, "json": mutate_json, "yaml": mutate_text, "csv": mutate_text}.get(ending, mutate_binary)


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Make one change in JSON lines: to bytes, to a field, to lines, or to the whole file."""
    lines = content.split(b"\n")
    line = draw.randrange(len(lines))
    changes = {
        "bytes": lambda: mutate_bytes(content, draw),
        "value": lambda: b"\n".join([*lines[:line], mutate_field(lines[line], draw), *lines[line + 1 :]]),
        "inner": lambda: b"\n".join([*lines[:line], mutate_value(lines[line], draw), *lines[line + 1 :]]),
        "move": lambda: b"\n".join(draw.sample(lines, len(lines))),
        "twice": lambda: b"\n".join([*lines[:line], lines[line], *lines[line:]]),
        "empty lines": lambda: content.replace(b"\n", draw.choice([b"\n\n", b"\r\n", b"\r", b"", b" \n\t"])),
        "file": lambda: draw.choice([b"\xef\xbb\xbf" + content, as_utf_16(content), b"[" + content]),
        "list": lambda: b"[" + b",".join(filter(None, lines)) + b"]",
    }
    return changes[draw.choice([*changes, "value", "value", "inner", "bytes"])]()


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """Make one change in a file that is one JSON value."""
    changes = {
        "value": lambda: mutate_value(content, draw),
        "bytes": lambda: mutate_bytes(content, draw),
        "file": lambda: draw.choice([b"\xef\xbb\xbf" + content, as_utf_16(content), b"[" + content + b"]", b""]),
        "whole": lambda: draw.choice(VALUES).encode("utf-8", "surrogatepass"),
    }
    return changes[draw.choice([*["value"] * 12, *["bytes"] * 4, "file", "whole"])]()


def mutate_text(content: bytes, draw: random.Random) -> bytes:
    """Make one change in a text: to bytes, to a line, or to a scalar (between spaces, commas and colons)."""
    lines = content.split(b"\n")
    line = draw.randrange(len(lines))
    scalars = list(re.finditer(rb"[^\s,:{}\[\]]+", content))
    new = draw.choice(VALUES).encode("utf-8", "surrogatepass")
    changes = {
        "bytes": lambda: mutate_bytes(content, draw),
        "move": lambda: b"\n".join(draw.sample(lines, len(lines))),
        "twice": lambda: b"\n".join([*lines[:line], lines[line], *lines[line:]]),
        "drop": lambda: b"\n".join([*lines[:line], *lines[line + 1 :]]),
        "indent": lambda: b"\n".join([*lines[:line], b"  " + lines[line], *lines[line + 1 :]]),
        "file": lambda: draw.choice(
            [b"\xef\xbb\xbf" + content, as_utf_16(content), content.replace(b"\n", b"\r"), b""]
        ),
    }
    if scalars:
        chosen = draw.choice(scalars)
        changes["scalar"] = lambda: content[: chosen.start()] + new + content[chosen.end() :]
    return changes[draw.choice([*changes, *["scalar"] * 6 * bool(scalars)])]()


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content) + 1)
    end = min(len(content), at + draw.choice([1, 1, 2, 10, 100, 1000]))
    changes = {
        "flip": lambda: content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :],
        "bit": lambda: (
            content[:at] + bytes(byte ^ 1 << draw.randrange(8) for byte in content[at : at + 1]) + content[at + 1 :]
        ),
        "put": lambda: content[:at] + bytes(draw.choices(BYTES, k=draw.randrange(1, 5))) + content[at:],
        "drop": lambda: content[:at] + content[end:],
        "double": lambda: content[:end] + content[at:],
        "cut": lambda: content[:at],
    }
    return changes[draw.choice([*changes])]()


def mutate_binary(content: bytes, draw: random.Random) -> bytes:
    """Make one change in a binary file: to bytes, or a number (little or big endian) is replaced by an extreme one."""
    if draw.random() < 0.4 or len(content) < 8:
        return mutate_bytes(content, draw)
    size = draw.choice([1, 2, 4, 8])
    at = draw.choice([draw.randrange(len(content)), draw.randrange(len(content)) // 8 * 8, draw.randrange(8)])
    number = draw.choice([*EXTREMES, draw.randrange(2**16), len(content)]) % 2 ** (8 * size)
    return content[:at] + number.to_bytes(size, draw.choice(["little", "little", "big"])) + content[at + size :]


def mutate_packed(content: bytes, draw: random.Random) -> bytes:
    """Damage a compressed file (.gz or .zst): either its contents, or the compressed bytes."""
    unpack, pack = (gzip.decompress, gzip.compress) if content[:2] == b"\x1f\x8b" else (zstd.decompress, zstd.compress)
    if draw.random() < 0.5:
        try:
            return pack(mutate(unpack(content), draw))
        except (OSError, EOFError, zlib.error, zstd.ZstdError):  # it was already damaged
            pass
    return mutate_binary(content, draw)


def mutate_field(line: bytes, draw: random.Random) -> bytes:
    """Give one of the fields of an object another value or another name."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(record, dict) or not record:
        return line
    name = draw.choice(list(record))
    new = draw.choice(VALUES)
    parts = [f"{json.dumps(key)}: {new if key == name else json.dumps(value)}" for key, value in record.items()]
    other = draw.choice(["sentence", "label", "text", "all", "cot_tail", "question", "", "x" * 1000, "\ud800", "a\0"])
    action = draw.choice(["value", "value", "add", "remove", "rename"])
    if action == "add":
        parts.insert(draw.randrange(len(parts) + 1), f"{json.dumps(other)}: {new}")
    elif action != "value":
        record = {
            other if key == name else key: value for key, value in record.items() if action == "rename" or key != name
        }
        parts = [json.dumps(record)[1:-1]]
    return encoded("{" + ", ".join(parts) + "}")


def mutate_value(content: bytes, draw: random.Random) -> bytes:
    """Make one change in a JSON value: replace, remove, duplicate, rename or exchange."""
    try:
        whole = json.loads(content)
        places = places_in(whole)
    except (ValueError, RecursionError):
        return content
    if not places:
        return encoded(draw.choice(VALUES))
    holder, key = draw.choice(places)
    action = draw.choice(["value", "value", "value", "remove", "rename", "exchange", "wrap", "add", "number"])
    new = MARK
    if action == "remove":
        del holder[key]
    elif action == "rename" and isinstance(holder, dict):
        holder[json.loads(draw.choice(['""', '"\\ud800"', '"a\\u0000"', '"../x"', '"\\u001b[2J"', '"a"']))] = (
            holder.pop(key)
        )
    elif action == "exchange":
        other, place = draw.choice(places)
        holder[key], other[place] = json.loads(json.dumps(other[place])), json.loads(json.dumps(holder[key]))
    elif action == "wrap":
        holder[key] = draw.choice([[holder[key]], {"a": holder[key]}, str(holder[key]), [holder[key]] * 100])
    elif action == "add" and isinstance(holder, list):
        holder.insert(key, new)
    elif action == "number" and isinstance(holder[key], int | float):
        holder[key] = draw.choice(
            [
                holder[key] + 1,
                -holder[key],
                holder[key] * 1000,
                str(holder[key]),
                holder[key] / 1 if abs(holder[key]) < 2**1000 else 0.5,
            ]
        )
    else:
        holder[key] = new
    return encoded(json.dumps(whole).replace(json.dumps(MARK), draw.choice(VALUES)))


MARK = "\0here\0"
"""Marks the place for the text of a new value, which need not be valid JSON."""


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """(list or object, index or name) for every value inside of a value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        keys: Any = holder if isinstance(holder, Mapping) else range(len(holder)) if isinstance(holder, list) else ()
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys]
    return found


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def as_utf_16(content: bytes) -> bytes:
    return content.decode("latin-1").encode("utf-16")
