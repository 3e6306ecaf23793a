"""Train a reader, and optionally its retriever, on multiple-choice questions."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("atlas.train")
