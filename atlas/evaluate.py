"""Evaluate a reader and its retriever on multiple-choice questions."""

from teacherlm.core.errors import run
from teacherlm.atlas.evaluate import main

if __name__ == "__main__":
    run(main)
