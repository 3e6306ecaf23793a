"""Put the shards of an enhancement together: the input's order, every record once."""

from teacherlm.core.programs import run
from teacherlm.enhance.merge import main

if __name__ == "__main__":
    run(main)
