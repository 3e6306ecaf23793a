"""Download a corpus of Wikipedia passages, for --passages."""

from teacherlm.atlas.download_corpus import main
from teacherlm.core.programs import run

if __name__ == "__main__":
    run(main)
