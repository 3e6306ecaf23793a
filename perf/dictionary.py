"""A large real corpus: the entries of GCIDE (Webster 1913 and later), with questions from WordNet's definitions.

Both come from Debian's packages dict-gcide and dict-wn. If they are not installed, apt-get downloads them into the
user's cache. A question is WordNet's definition of a word, and GCIDE's entry for this word should be found. The word
itself is not in the question.
"""

import gzip
import re
import shutil
import string
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from teacherlm.core.files import whole_folder
from teacherlm.core.places import cache_folder

DIGITS = {
    digit: value for value, digit in enumerate(string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/")
}
LEAST_WORDS = 5
"""Minimum number of words of a definition or an entry."""


def databases() -> Path:
    """The folder with gcide and wn in dictd's format (.index and .dict.dz)."""
    installed = Path("/usr/share/dictd")
    if all((installed / f"{name}.index").is_file() for name in ("gcide", "wn")):
        return installed
    folder = cache_folder() / "dictionaries"
    if not folder.is_dir():
        with whole_folder(folder) as partial, tempfile.TemporaryDirectory() as work:
            subprocess.run(["apt-get", "download", "dict-gcide", "dict-wn"], cwd=work, check=True, stdout=2)
            for package in Path(work).glob("*.deb"):
                subprocess.run(["dpkg-deb", "--extract", package, Path(work) / "unpacked"], check=True)
            for file in (Path(work) / "unpacked/usr/share/dictd").iterdir():
                shutil.move(file, partial)
    return folder


def entries(name: str) -> Iterator[tuple[str, str]]:
    """Yield (word, its entry) for each entry of a dictionary. An entry with several words is yielded once."""
    folder = databases()
    whole = gzip.open(folder / f"{name}.dict.dz").read()
    seen = set()
    for line in (folder / f"{name}.index").read_text(encoding="utf-8").splitlines():
        word, start, length = line.split("\t")[:3]
        place = number(start), number(length)
        if place not in seen and not word.startswith("00-database"):
            seen.add(place)
            yield word, whole[place[0] : sum(place)].decode("utf-8", "replace")


def number(digits: str) -> int:
    """The value of a number in dictd's format, which has the base 64."""
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS[digit]
    return value


def passages() -> list[dict[str, str]]:
    """GCIDE's entries as passages. The title is the word; the text is the entry in one line without source marks."""
    made = []
    for word, entry in entries("gcide"):
        text = re.sub(r"\s+", " ", re.sub(r"\[[^\]]*\]", " ", entry).replace("{", "").replace("}", "")).strip()
        if len(text.split()) >= LEAST_WORDS:
            made.append({"id": str(len(made)), "title": word, "text": text})
    return made


def questions(passages: list[dict[str, str]], count: int) -> list[tuple[str, str]]:
    """(definition, id of the passage) for `count` evenly spaced words that occur once in both dictionaries."""
    by_word = defaultdict(list)
    for passage in passages:
        by_word[passage["title"].lower()].append(passage["id"])
    found = []
    for word, entry in entries("wn"):
        ids = by_word.get(word.lower(), [])
        senses = re.findall(r"(?:^|\s)(?:n|v|adj|adv)?\s*\d*:\s", entry)
        definition = re.sub(r"\s+", " ", entry.split(":", 1)[-1]).split(";")[0].split("[syn")[0].strip()
        alone = len(ids) == 1 and len(senses) == 1 and len(definition.split()) >= LEAST_WORDS
        if alone and word.lower() not in definition.lower():
            found.append((definition, ids[0]))
    return found[:: max(1, len(found) // count)][:count]
