"""Let a teacher write, for every record, why its answer is right: the thoughts, mistakes or fundamentals."""

from teacherlm.core.programs import run
from teacherlm.enhance.main import main

if __name__ == "__main__":
    run(main)
