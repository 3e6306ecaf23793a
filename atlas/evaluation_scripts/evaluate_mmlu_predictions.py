"""Print the MMLU table of a run's predictions: accuracy, and accuracy debiased over permutations."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("atlas.scores")
