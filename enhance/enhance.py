"""Let a teacher explain the answer of every record."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("enhance.main")
