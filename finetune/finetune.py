"""Finetune a student on the texts of a dataset, with one checkpoint per epoch."""

from teacherlm.core.programs import run_module
from teacherlm.runtime.compat.of_python import exit_code_kept

if __name__ == "__main__":
    with exit_code_kept():
        run_module("finetune.main")
