"""Train a reader on multiple-choice questions, and its retriever with it."""

from teacherlm.atlas.train import main
from teacherlm.core.programs import run

if __name__ == "__main__":
    run(main)
