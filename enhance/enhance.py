"""Let a teacher write, for every record, why its answer is right: the thoughts, mistakes or fundamentals."""

from teacherlm.core.programs import run_module

if __name__ == "__main__":
    run_module("enhance.main")
