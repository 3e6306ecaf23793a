"""Prepare a benchmark for the teacher, and post-process what the teacher wrote."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("dataset.main")
