"""Make the question files of the MMLU experiments from the original archive."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("atlas.prepare_mmlu")
