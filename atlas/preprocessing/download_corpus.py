"""Download a corpus of Wikipedia passages, for --passages."""

from teacherlm.core.errors import run
from teacherlm.atlas.download_corpus import main

if __name__ == "__main__":
    run(main)
