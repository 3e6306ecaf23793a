"""Train a reader on multiple-choice questions, and its retriever with it."""

from teacherlm.core.errors import run
from teacherlm.atlas.train import main

if __name__ == "__main__":
    run(main)
