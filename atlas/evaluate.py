"""Evaluate a reader and its retriever on multiple-choice questions."""

from teacherlm.atlas.evaluate import main
from teacherlm.core.programs import run

if __name__ == "__main__":
    run(main)
