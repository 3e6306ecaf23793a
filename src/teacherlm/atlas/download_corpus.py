"""Download a corpus of Wikipedia passages, for --passages."""

from pathlib import Path

from teacherlm.atlas.downloads import BASE_URL, fetch_all
from teacherlm.core.flags import Parser

CORPORA = [f"corpora/wiki/enwiki-{date}" for date in ("dec2017", "dec2018", "aug2019", "dec2020", "dec2021")]
FILES = ("text-list-100-sec.jsonl", "infobox.jsonl")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--corpus", required=True, choices=CORPORA, metavar="NAME", help=", ".join(CORPORA))
    parser.add_argument("--output_directory", type=Path, default=Path("data"))
    parser.add_argument("--base_url", default=BASE_URL, help=f"of a mirror (default: {BASE_URL})")
    args = parser.parse_args()
    fetch_all(args.base_url, [f"{args.corpus}/{file}" for file in FILES], args.output_directory)
