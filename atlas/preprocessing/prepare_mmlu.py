"""Make the question files of the MMLU experiments from the original archive."""

from teacherlm.atlas.prepare_mmlu import main
from teacherlm.core.programs import run

if __name__ == "__main__":
    run(main)
