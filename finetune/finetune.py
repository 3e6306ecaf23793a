"""Finetune a student on the texts of a dataset, a checkpoint an epoch."""

from teacherlm.core.programs import exit_code_kept, run
from teacherlm.finetune.main import main

if __name__ == "__main__":
    with exit_code_kept():
        run(main)
