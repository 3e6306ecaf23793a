"""The MMLU table of a run's predictions: accuracy, and accuracy debiased over permutations."""

from teacherlm.atlas.scores import main
from teacherlm.core.programs import run

if __name__ == "__main__":
    run(main)
