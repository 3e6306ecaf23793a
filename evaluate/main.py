"""Score a model by the log-likelihood of the choices. With --checkpoints, score each checkpoint of a run as well."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("scoring.main")
