"""Merge the shards of an enhancement: every record once, in the order of the input."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("enhance.merge")
