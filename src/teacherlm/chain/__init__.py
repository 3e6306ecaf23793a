"""Chains of stages: their settings, the site's settings, running them here or on Slurm, the state of their jobs."""
