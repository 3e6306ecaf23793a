"""Let a teacher write, for every record, why its answer is right: the chain of thought, the mistakes, the fundamentals."""

from teacherlm.core.errors import run
from teacherlm.enhance.main import main

if __name__ == "__main__":
    run(main)
