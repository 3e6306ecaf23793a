"""Models on devices: loading and checking them, fast paths and their self-check, memory, and the processes of a run."""
