"""Train a reader on multiple-choice questions, and its retriever with it."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("atlas.train")
