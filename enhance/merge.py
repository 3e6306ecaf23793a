"""Put the shards of an enhancement together: the input's order, every record once."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("enhance.merge")
