"""Make the question files of the MMLU experiments from the original archive."""

from teacherlm.core.errors import run
from teacherlm.atlas.prepare_mmlu import main

if __name__ == "__main__":
    run(main)
