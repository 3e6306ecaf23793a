"""Prepare a benchmark for the teacher, and post-process what the teacher wrote."""

from teacherlm.core.programs import run
from teacherlm.dataset.main import main

if __name__ == "__main__":
    run(main)
