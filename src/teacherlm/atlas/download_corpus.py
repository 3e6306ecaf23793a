"""Download a corpus of Wikipedia passages, for --passages."""

from dataclasses import dataclass
from pathlib import Path

from teacherlm.atlas.downloads import BASE_URL, fetch_all
from teacherlm.core.flags import flag, parse

CORPORA = [f"corpora/wiki/enwiki-{date}" for date in ("dec2017", "dec2018", "aug2019", "dec2020", "dec2021")]
FILES = ("text-list-100-sec.jsonl", "infobox.jsonl")


@dataclass(frozen=True)
class CorpusFlags:
    """Which corpus is downloaded, and where it is written."""

    corpus: str = flag(choices=CORPORA, metavar="NAME", help=f"the corpus: {', '.join(CORPORA)}")
    output_directory: Path = flag(Path("data"), help="the folder to write to (default: data)")
    base_url: str = flag(BASE_URL, help=f"the server, or a mirror of it (default: {BASE_URL})")


def main() -> None:
    flags = parse(
        CorpusFlags,
        __doc__,
        example="teacherlm download-corpus --corpus corpora/wiki/enwiki-dec2018 --output_directory data",
    )
    fetch_all(flags.base_url, [f"{flags.corpus}/{file}" for file in FILES], flags.output_directory)
