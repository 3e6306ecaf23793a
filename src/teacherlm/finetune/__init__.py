"""The student learns: samples, collators, losses, the trainer and its checkpoints, what is written down meanwhile."""
