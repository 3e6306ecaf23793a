"""Send the runs that wandb kept offline, from where the network is there: a login node, after the jobs."""

from teacherlm.core.programs import run
from teacherlm.finetune.sync_wandb import main

if __name__ == "__main__":
    run(main)
