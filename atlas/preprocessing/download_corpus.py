"""Download a corpus of Wikipedia passages, for --passages."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("atlas.download_corpus")
