"""The MMLU table of a run's predictions: accuracy with the options in their own order, and debiased over permutations."""

from teacherlm.core.errors import run
from teacherlm.atlas.scores import main

if __name__ == "__main__":
    run(main)
