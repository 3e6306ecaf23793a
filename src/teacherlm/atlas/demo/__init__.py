"""A small world that ATLAS is tried out on."""
