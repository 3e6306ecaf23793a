"""A real corpus at size: the entries of GCIDE (Webster 1913 and later), and questions from WordNet's definitions.

Both come from Debian's packages dict-gcide and dict-wn: what is installed is taken, otherwise they are fetched with
apt-get into the user's cache. A question is the definition that WordNet gives a word; the entry that should be found is
the one that GCIDE has under that word. The word itself is not in the question.
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
"""Of a definition or an entry that is used."""


def databases() -> Path:
    """The folder with gcide and wn, as dictd has them (.index and .dict.dz)."""
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
    """(word, its entry) of a dictionary, once for each place in its file."""
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
    """dictd's numbers, to the base 64."""
    value = 0
    for digit in digits:
        value = value * 64 + DIGITS[digit]
    return value


def passages() -> list[dict[str, str]]:
    """GCIDE's entries as passages: the word as the title, the entry in one line, without its marks of origin."""
    made = []
    for word, entry in entries("gcide"):
        text = re.sub(r"\s+", " ", re.sub(r"\[[^\]]*\]", " ", entry).replace("{", "").replace("}", "")).strip()
        if len(text.split()) >= LEAST_WORDS:
            made.append({"id": str(len(made)), "title": word, "text": text})
    return made


def questions(passages: list[dict[str, str]], count: int) -> list[tuple[str, str]]:
    """(definition, id of the passage) of words that both dictionaries have once; every so many of them, in order."""
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
