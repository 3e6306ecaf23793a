"""Score a model, and with --checkpoints each of a student's checkpoints, by the log-likelihood of the choices."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("scoring.main")
