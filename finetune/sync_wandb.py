"""Send the runs that wandb kept offline, from a machine with network access, such as a login node."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("finetune.sync_wandb")
