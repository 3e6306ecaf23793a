"""Send the runs that wandb kept offline, from where the network is there: a login node, after the jobs."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("finetune.sync_wandb")
